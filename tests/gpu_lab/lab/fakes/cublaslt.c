/* libcublasLt.so.13: every matrix product has one algorithm, which computes nothing. */
#include "lab.h"

/* The result structure is 16 words of the algorithm, the workspace, the state, and the rest. */
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c,
                                   void *d, void *preference, int wanted, void *results,
                                   int *found) {
    memset(results, 0, 96);
    *found = 1;
    return 0;
}
