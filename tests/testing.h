/* testing.h - what every test program shares: cmocka, shared test data, folders that clean up.
 *
 * Tests run in the project's root. Data too large for the repository lies in the folder that
 * QUIRE_TEST_DATA names (../shared/data when unset); a test that does not find its file says so
 * and skips itself:
 *
 *   char *path = test_data_path("tokenizers/qwen3");
 *   if (!path) skip();
 *
 * Failing helpers end the running test.
 */
#ifndef QUIRE_TESTING_H
#define QUIRE_TESTING_H

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/model.h"
#include "engine/util.h"
#include "kernels/backend.h"

/* The path of a file or folder of the shared data, for the caller to free. NULL, after a printed
 * line that the summary of `make test` repeats, when it is not there. */
char *test_data_path(const char *name);

/* An empty folder of this test program, made at the first call and removed with all its contents
 * when the program ends. Borrowed. */
const char *test_dir(void);

/* The path of `name` in test_dir(), for the caller to free. */
char *test_path(const char *name);

/* Writes a file in test_dir() and returns its path, for the caller to free. */
char *test_write_file(const char *name, const void *data, size_t n);
char *test_write_text(const char *name, const char *text);

/* The device that tests of models and engines run on: QUIRE_TEST_DEVICE=cuda, or the CPU. */
enum device_kind test_device(void);

/* The model, which is there: fails the test otherwise. The caller closes. */
struct model *test_open_model(const struct model_options *options);

/* Fails unless the last error is of this kind and its message contains `part`. */
void assert_error(enum err_kind kind, const char *part);

/* Fails unless `text` contains `part`. */
void assert_contains(const char *text, const char *part);

#endif
