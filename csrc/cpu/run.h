// Work over threads.
#pragma once

#include "job.h"

namespace dlmt {

// Section 1 and 3 of the contract. Fills `job.bounds` for min-max.
void affine(Job job, int threads);

// Section 4. Returns -1, or the smallest flat index, over all images, of a value that cannot come from this key.
int64_t affine_inverse(Job job, int threads);

}  // namespace dlmt
