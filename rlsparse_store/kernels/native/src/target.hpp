// Compiles what stands between the two macros for processors with these features, whatever the
// compiler's own options say.
#pragma once

#define RLSPARSE_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define RLSPARSE_TARGET_BEGIN(features) \
    RLSPARSE_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define RLSPARSE_TARGET_END _Pragma("clang attribute pop")
#else
#define RLSPARSE_TARGET_BEGIN(features) \
    _Pragma("GCC push_options") RLSPARSE_PRAGMA(GCC target(features))
#define RLSPARSE_TARGET_END _Pragma("GCC pop_options")
#endif
