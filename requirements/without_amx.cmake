# Read after the first line of llama-cpp-python's build, by way of CMAKE_PROJECT_llama_cpp_INCLUDE. It leaves out Intel's
# matrix unit (AMX). llama.cpp's kernels for it end the process as soon as a batch of quantised weights has two rows.
# A compiler that does not know the options, as for another kind of CPU, does not get them.
include(CheckCCompilerFlag)
set(WITHOUT_AMX -mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
check_c_compiler_flag("${WITHOUT_AMX}" COMPILER_KNOWS_AMX)
if(COMPILER_KNOWS_AMX)
    add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:${WITHOUT_AMX}>")
endif()
