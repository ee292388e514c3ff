#!/usr/bin/env bash
# Four nodes work at one experiment, started by srun and by mpirun: the samples are those of one
# process, every node did its part, and hardly anything went over the network.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../lib.sh"

exits "srun on four nodes" 0 srun --mpi=pmix --kill-on-bad-exit=1 -N4 "$quire" run "$config"
sql_equal "one run of four ranks on four hosts" "$db" \
    "select count(*), max(mpi_size), (select count(distinct host) from workers) from runs" "1|4|4"
sql_equal "each rank finished samples" "$db" "select count(*) from workers where n_done > 0" 4
sql_equal "less than 4 KiB per sample went over the network" "$db" \
    "select sum(sent_bytes) < 4096 * (select count(*) from samples) from workers" 1
sql_equal "and something did" "$db" "select min(sent_bytes) > 0 from workers" 1
as_undisturbed "srun --mpi=pmix -N4"

# mpirun's own way to other hosts, over TCP between network namespaces; two ranks on each.
db=$work/mpirun.db
exits "mpirun on two hosts, two ranks each" 0 mpirun --mca plm rsh --mca plm_rsh_agent "$node" \
    -H n1:2,n2:2 "$quire" run "$config" --results "$db"
sql_equal "two hosts" "$db" "select count(distinct host), count(*) from workers" "2|4"
as_undisturbed "mpirun -H n1:2,n2:2" "$db"
