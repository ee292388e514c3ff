/* machine.h - what this process may use of the machine: processors, memory, their names.
 *
 * The kernel's word (affinity mask, /proc/meminfo) is narrowed by control groups, version 1 and 2,
 * because a batch system or a container gives a job a part of a node and kills what exceeds it.
 */
#ifndef QUIRE_CPU_MACHINE_H
#define QUIRE_CPU_MACHINE_H

#include <stddef.h>

#define MACHINE_UNLIMITED ((size_t)-1)

/* What the control groups of a process and all their ancestors allow. */
struct cgroup_limits {
    size_t memory_bytes;      /* MACHINE_UNLIMITED: no limit                          */
    size_t memory_free_bytes; /* until the first limit is hit; page cache counts as free */
    double cpus;              /* quota in processors; 0: no limit                     */
};

/* membership: a file like /proc/self/cgroup; root: where control groups are mounted. What cannot
 * be read limits nothing. */
struct cgroup_limits cgroup_limits_read(const char *membership, const char *root);

void machine_cpu_name(char name[128]);
size_t machine_memory_bytes(void);      /* all that this process may use */
size_t machine_memory_free_bytes(void); /* the part that is free now     */
int machine_cpus(void);                 /* at least 1                    */

#endif
