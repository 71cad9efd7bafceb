// The kernel of a step, by the file that holds it; null where the file holds none such.
#pragma once

#include "schedule.h"

namespace dlmt::cuda {

using Function = void (*)(Args);

Function stream_function(const Step& step);   // stream.cu: "none" and "range"
Function minmax_function(const Step& step);   // minmax.cu
Function inverse_function(const Step& step);  // inverse.cu: inverses and the plain copy

inline Function function_of(const Step& step) {
    for (const auto find : {stream_function, minmax_function, inverse_function}) {
        if (const Function found = find(step)) return found;
    }
    return nullptr;
}

}  // namespace dlmt::cuda
