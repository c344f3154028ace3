/* NumPy's products by oneMKL, which torch uses: how much of a difference is the library's.

   python -m venv mkl && mkl/bin/pip install mkl  # 2026.2
   cc -shared -fPIC -o numpy_on_mkl.so tests/tools/benchmarks/mkl.c
   LD_LIBRARY_PATH=mkl/lib LD_PRELOAD=$PWD/numpy_on_mkl.so:libmkl_rt.so.3 \
     python tests/tools/benchmarks/run.py --rows forward --models FOLDER

   The names are those that NumPy's wheels call, and of MKL's interface with 64-bit integers. */
#include <stdint.h>

typedef int64_t n;
typedef int e;

#define PRODUCTS(prefix, real)                                                                     \
    void cblas_##prefix##gemm_64(e, e, e, n, n, n, real, const real *, n, const real *, n, real,   \
                                 real *, n);                                                       \
    void scipy_cblas_##prefix##gemm64_(e o, e s, e t, n i, n j, n k, real f, const real *a, n p,   \
                                       const real *b, n q, real g, real *c, n r) {                 \
        cblas_##prefix##gemm_64(o, s, t, i, j, k, f, a, p, b, q, g, c, r);                         \
    }                                                                                              \
    void cblas_##prefix##syrk_64(e, e, e, n, n, real, const real *, n, real, real *, n);           \
    void scipy_cblas_##prefix##syrk64_(e o, e u, e t, n i, n k, real f, const real *a, n p,        \
                                       real g, real *c, n r) {                                     \
        cblas_##prefix##syrk_64(o, u, t, i, k, f, a, p, g, c, r);                                  \
    }                                                                                              \
    void cblas_##prefix##gemv_64(e, e, n, n, real, const real *, n, const real *, n, real, real *, \
                                 n);                                                               \
    void scipy_cblas_##prefix##gemv64_(e o, e t, n i, n j, real f, const real *a, n p,             \
                                       const real *x, n q, real g, real *y, n r) {                 \
        cblas_##prefix##gemv_64(o, t, i, j, f, a, p, x, q, g, y, r);                               \
    }

PRODUCTS(s, float)
PRODUCTS(d, double)
