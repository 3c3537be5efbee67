/* The network's arithmetic for the page: float32, one image, pixels before channels [H,W,C].

   clang --target=wasm32 -O3 -ffast-math -msimd128 -mbulk-memory -nostdlib \
       -Wl,--no-entry,--export-dynamic,--export=__heap_base,--strip-all,-z,stack-size=65536 -o kernels.wasm kernels.c

   Everything lies in one memory, which the caller lays out from __heap_base on. */
#include <wasm_simd128.h>

#define EXPORT __attribute__((visibility("default")))
typedef float f32;
typedef v128_t f32x4;

static inline f32x4 fma4(f32x4 a, f32x4 b, f32x4 c) { return wasm_f32x4_add(wasm_f32x4_mul(a, b), c); }

/* e^x to 2 units in the last place: x = n ln 2 + r, a polynomial for e^r, n into the exponent. */
static inline f32x4 exp4(f32x4 x) {
    x = wasm_f32x4_max(wasm_f32x4_min(x, wasm_f32x4_splat(88.0f)), wasm_f32x4_splat(-87.0f));
    f32x4 n = wasm_f32x4_nearest(wasm_f32x4_mul(x, wasm_f32x4_splat(1.44269504f)));
    f32x4 r = fma4(n, wasm_f32x4_splat(-0.693145752f), x);
    r = fma4(n, wasm_f32x4_splat(-1.42860677e-6f), r);
    f32x4 y = wasm_f32x4_splat(1.0f / 5040);
    y = fma4(y, r, wasm_f32x4_splat(1.0f / 720));
    y = fma4(y, r, wasm_f32x4_splat(1.0f / 120));
    y = fma4(y, r, wasm_f32x4_splat(1.0f / 24));
    y = fma4(y, r, wasm_f32x4_splat(1.0f / 6));
    y = fma4(y, r, wasm_f32x4_splat(0.5f));
    y = fma4(y, r, wasm_f32x4_splat(1.0f));
    y = fma4(y, r, wasm_f32x4_splat(1.0f));
    v128_t exponent = wasm_i32x4_shl(wasm_i32x4_trunc_sat_f32x4(n), 23);
    return wasm_i32x4_add(y, exponent);
}

static inline f32x4 silu4(f32x4 x) {
    f32x4 one = wasm_f32x4_splat(1.0f);
    return wasm_f32x4_div(x, wasm_f32x4_add(one, exp4(wasm_f32x4_neg(x))));
}

static inline f32 sum4(f32x4 v) {
    return wasm_f32x4_extract_lane(v, 0) + wasm_f32x4_extract_lane(v, 1)
         + wasm_f32x4_extract_lane(v, 2) + wasm_f32x4_extract_lane(v, 3);
}

/* c[m,n] = a[m,k] b + bias[n], for R rows at once.  b lies in panels of 8 columns, [n/8][k][8]. */
#define ROWS(R)                                                                                  \
    static void rows##R(int k, int n, const f32 *a, const f32 *b, const f32 *bias, f32 *c) {      \
        for (int j = 0; j < n; j += 8, b += 8 * k) {                                             \
            f32x4 left[R], right[R];                                                             \
            for (int r = 0; r < R; r++) {                                                        \
                left[r] = wasm_v128_load(bias + j);                                              \
                right[r] = wasm_v128_load(bias + j + 4);                                         \
            }                                                                                    \
            for (int i = 0; i < k; i++) {                                                        \
                f32x4 l = wasm_v128_load(b + 8 * i), h = wasm_v128_load(b + 8 * i + 4);           \
                _Pragma("clang loop unroll(full)") for (int r = 0; r < R; r++) {                 \
                    f32x4 x = wasm_v128_load32_splat(a + r * k + i);                             \
                    left[r] = fma4(x, l, left[r]);                                               \
                    right[r] = fma4(x, h, right[r]);                                             \
                }                                                                                \
            }                                                                                    \
            for (int r = 0; r < R; r++) {                                                        \
                wasm_v128_store(c + r * n + j, left[r]);                                         \
                wasm_v128_store(c + r * n + j + 4, right[r]);                                    \
            }                                                                                    \
        }                                                                                        \
    }
ROWS(1)
ROWS(2)
ROWS(4)
ROWS(6)

EXPORT void product(int m, int n, int k, const f32 *a, const f32 *b, const f32 *bias, f32 *c) {
    for (; m >= 6; m -= 6, a += 6 * k, c += 6 * n) rows6(k, n, a, b, bias, c);
    for (; m >= 4; m -= 4, a += 4 * k, c += 4 * n) rows4(k, n, a, b, bias, c);
    for (; m >= 2; m -= 2, a += 2 * k, c += 2 * n) rows2(k, n, a, b, bias, c);
    for (; m; m--, a += k, c += n) rows1(k, n, a, b, bias, c);
}

/* The 3 x 3 neighbourhoods of x [side,side,c], zeros beyond the edge, every `stride` pixels. */
EXPORT void neighbourhoods(int side, int c, int stride, const f32 *x, f32 *out) {
    for (int y = 0; y < side; y += stride)
        for (int z = 0; z < side; z += stride)
            for (int tap = 0; tap < 9; tap++, out += c) {
                int row = y + tap / 3 - 1, column = z + tap % 3 - 1;
                if (row < 0 || column < 0 || row >= side || column >= side)
                    __builtin_memset(out, 0, c * sizeof(f32));
                else
                    __builtin_memcpy(out, x + (row * side + column) * c, c * sizeof(f32));
            }
}

/* A transposed convolution (4 x 4, stride 2) from its products [side,side,16,c]: each pixel of
   out [2 side,2 side,c] is bias and the sum of up to four of them. */
EXPORT void grow(int side, int c, const f32 *products, const f32 *bias, f32 *out) {
    for (int y = 0; y < 2 * side; y++)
        for (int z = 0; z < 2 * side; z++, out += c) {
            __builtin_memcpy(out, bias, c * sizeof(f32));
            for (int ky = (y + 1) % 2; ky < 4; ky += 2)
                for (int kz = (z + 1) % 2; kz < 4; kz += 2) {
                    int row = (y + 1 - ky) / 2, column = (z + 1 - kz) / 2;
                    if (y + 1 < ky || z + 1 < kz || row >= side || column >= side) continue;
                    const f32 *from = products + ((row * side + column) * 16 + 4 * ky + kz) * c;
                    for (int i = 0; i < c; i += 4)
                        wasm_v128_store(out + i, wasm_f32x4_add(wasm_v128_load(out + i), wasm_v128_load(from + i)));
                }
        }
}

/* Group normalisation with eps 1e-5 of x [pixels,c], then silu if `active`. */
EXPORT void normalise(int pixels, int c, int groups, int active, const f32 *x, const f32 *gain, const f32 *shift, f32 *out) {
    int width = c / groups;
    for (int g = 0; g < groups; g++) {
        double sum = 0, squares = 0;
        for (int p = 0; p < pixels; p++)
            for (int i = g * width; i < (g + 1) * width; i++) sum += x[p * c + i];
        double mean = sum / (pixels * width);
        for (int p = 0; p < pixels; p++)
            for (int i = g * width; i < (g + 1) * width; i++) {
                double apart = x[p * c + i] - mean;
                squares += apart * apart;
            }
        f32 scale = 1.0f / __builtin_sqrtf((f32)(squares / (pixels * width)) + 1e-5f);
        for (int p = 0; p < pixels; p++)
            for (int i = g * width; i < (g + 1) * width; i++)
                out[p * c + i] = (x[p * c + i] - (f32)mean) * scale * gain[i] + shift[i];
    }
    if (active)
        for (int i = 0; i < pixels * c; i += 4) wasm_v128_store(out + i, silu4(wasm_v128_load(out + i)));
}

EXPORT void silu(int n, f32 *x) {
    for (int i = 0; i < n; i += 4) wasm_v128_store(x + i, silu4(wasm_v128_load(x + i)));
}

/* x [pixels,c] times 1 + scale plus shift; both in moves [2 c]. */
EXPORT void modulate(int pixels, int c, const f32 *moves, f32 *x) {
    for (int p = 0; p < pixels; p++)
        for (int i = 0; i < c; i++) x[p * c + i] = x[p * c + i] * (1 + moves[i]) + moves[c + i];
}

EXPORT void add(int n, const f32 *x, f32 *to) {
    for (int i = 0; i < n; i++) to[i] += x[i];
}

/* x [pixels,a] and y [pixels,b] side by side: out [pixels,a+b]. */
EXPORT void beside(int pixels, int a, int b, const f32 *x, const f32 *y, f32 *out) {
    for (int p = 0; p < pixels; p++, out += a + b) {
        __builtin_memcpy(out, x + p * a, a * sizeof(f32));
        __builtin_memcpy(out + a, y + p * b, b * sizeof(f32));
    }
}

/* qkv [pixels,3,heads,d] -> what each pixel reads from all others, out [pixels,heads,d].
   `shares` has room for the pixels of one row, to a multiple of 4. */
EXPORT void attend(int pixels, int heads, int d, const f32 *qkv, f32 *shares, f32 *out) {
    int c = heads * d;
    f32 scale = 1.0f / __builtin_sqrtf((f32)d);
    for (int h = 0; h < heads; h++)
        for (int p = 0; p < pixels; p++) {
            const f32 *q = qkv + 3 * p * c + h * d;
            f32 top = -1e30f, total = 0;
            for (int o = 0; o < pixels; o++) {
                const f32 *k = qkv + (3 * o + 1) * c + h * d;
                f32 dot = 0;
                for (int i = 0; i < d; i++) dot += q[i] * k[i];
                shares[o] = dot * scale;
                if (shares[o] > top) top = shares[o];
            }
            for (int o = pixels; o % 4; o++) shares[o] = -1e30f;
            for (int o = 0; o < pixels; o += 4)
                wasm_v128_store(shares + o, exp4(wasm_f32x4_sub(wasm_v128_load(shares + o), wasm_f32x4_splat(top))));
            for (int o = 0; o < pixels; o++) total += shares[o];
            f32 *to = out + p * c + h * d;
            __builtin_memset(to, 0, d * sizeof(f32));
            for (int o = 0; o < pixels; o++) {
                const f32 *v = qkv + (3 * o + 2) * c + h * d;
                f32 share = shares[o] / total;
                for (int i = 0; i < d; i++) to[i] += share * v[i];
            }
        }
}
