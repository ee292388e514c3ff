/* fuzz_yaml.c - any bytes as an experiment file: an error with a position, or a tree that can be
 * walked.
 */
#include "runner/yaml.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct yaml_doc *doc = yaml_doc_open();
    err_clear();
    struct yaml_node *root = yaml_parse(doc, "fuzz", (const char *)data, n);
    if (root) {
        json_t *json = yaml_to_json(root);
        assert(json_is_object(json) && json_object_size(json) == root->n_items);
        json_decref(json);
    } else {
        assert(err_get_kind() == ERR_CONFIG && strncmp(err_get(), "fuzz:", 5) == 0);
    }
    yaml_doc_close(doc);
    return 0;
}
