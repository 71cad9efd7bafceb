// Work over threads.
#pragma once

#include "job.h"

namespace dlmt {

// Section 1 and 3 of the contract, for a job that went through `prepare`. Fills `job.bounds` for min-max.
void affine(const Job& job, int threads);

// Section 4. Returns -1, or the smallest flat index, over all images, of a value that cannot come from this key.
int64_t affine_inverse(const Job& job, int threads);

}  // namespace dlmt
