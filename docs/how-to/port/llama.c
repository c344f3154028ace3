/* Llama's forward in float32, from safetensors to a file of every step: cc -O2 -o llama llama.c -lm
 *   ./llama MODEL.safetensors IDS.safetensors OUT.safetensors heads kv_heads eps theta */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { char *header, *data; } File; /* of safetensors: the JSON, and what is behind it */
static char header[1 << 16] = "{", prefix[64], *data; /* of the output, and of names */
static long N, S, size; /* sequences, tokens of each, and bytes that were put into `data` */

static void fail(const char *what, const char *which) {
  fprintf(stderr, "llama: %s %s\n", what, which);
  exit(2);
}

static File open_file(const char *path) {
  FILE *file = fopen(path, "rb");
  uint64_t length; /* of the JSON: the first eight bytes, the lowest first */
  if (!file || fread(&length, 8, 1, file) != 1 || fseek(file, 0, SEEK_END)) fail("cannot read", path);
  size_t rest = ftell(file) - 8 - length;
  File f = {calloc(length + 1, 1), malloc(rest)};
  fseek(file, 8, SEEK_SET);
  if (fread(f.header, 1, length, file) != length || fread(f.data, 1, rest, file) != rest)
    fail("cannot read", path);
  return f;
}

/* "name":{"dtype":"F32","shape":[44,32],"data_offsets":[first,last + 1]} */
static void *tensor(File f, long block, const char *name, const char *dtype, long *shape) {
  char key[256];
  sprintf(prefix, block < 0 ? "" : "model.layers.%ld.", block);
  snprintf(key, sizeof key, "\"%s%s\":{\"dtype\":\"%s\",\"shape\":[", prefix, name, dtype);
  char *at = strstr(f.header, key), *number = at + strlen(key);
  if (!at) fail("no tensor like", key);
  for (int i = 0; i < 2 && number[-1] != ']'; i++) shape[i] = strtol(number, &number, 10), number++;
  return f.data + strtol(strstr(at, "\"data_offsets\":[") + 16, 0, 10);
}

static float *new(long width) { return calloc(N * S * width, sizeof(float)); }

static void put(const char *name, const char *dtype, const char *shape, const void *x, size_t bytes) {
  size_t used = strlen(header);
  memcpy((data = realloc(data, size + bytes)) + size, x, bytes);
  snprintf(header + used, sizeof header - used,
           "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%ld,%s],\"data_offsets\":[%ld,%ld]}",
           used > 1 ? "," : "", name, dtype, N, shape, size, size + (long)bytes);
  size += bytes;
}

/* Write x [N, S, heads * h] as [N, heads, S, h], or as [N, S, h] if it has no heads. */
static void step(long block, const char *name, const float *x, long heads, long h) {
  char whole[64] = "", shape[64];
  float *y = new(heads * h);
  for (long at = 0; at < N * S * heads; at++) /* at = (n heads + head) S + s */
    memcpy(y + at * h, x + ((at / S / heads * S + at % S) * heads + at / S % heads) * h, h * sizeof *x);
  if (block >= 0) sprintf(whole, "blocks.%ld.", block);
  heads > 1 ? sprintf(shape, "%ld,%ld,%ld", heads, S, h) : sprintf(shape, "%ld,%ld", S, h);
  put(strcat(whole, name), "F32", shape, y, N * S * heads * h * sizeof *x);
}

static float *linear(const float *x, File m, long block, const char *name) { /* W x, W is [out, in] */
  long shape[2];
  float *w = tensor(m, block, name, "F32", shape), *y = new(shape[0]);
  for (long t = 0; t < N * S; t++)
    for (long o = 0; o < shape[0]; o++)
      for (long i = 0; i < shape[1]; i++) y[t * shape[0] + o] += w[o * shape[1] + i] * x[t * shape[1] + i];
  return y;
}

static float *rms_norm(const float *x, File m, long block, const char *name, float eps) {
  long D;
  float *gain = tensor(m, block, name, "F32", &D), *y = new(D);
  for (long t = 0; t < N * S; t++) {
    float squares = 0;
    for (long i = 0; i < D; i++) squares += x[t * D + i] * x[t * D + i];
    for (long i = 0; i < D; i++) y[t * D + i] = gain[i] * x[t * D + i] / sqrtf(squares / D + eps);
  }
  return y;
}

static void rotate(float *x, long heads, long h, double theta) { /* the pairs (i, i + h / 2) */
  for (long at = 0; at < N * S * heads * h; at += h)
    for (long i = 0; i < h / 2; i++) {
      double angle = at / (heads * h) % S * pow(theta, -2.0 * i / h);
      float c = cos(angle), s = sin(angle), a = x[at + i], b = x[at + i + h / 2];
      x[at + i] = a * c - b * s, x[at + i + h / 2] = b * c + a * s;
    }
}

static float *attend(const float *q, const float *k, const float *v, long H, long K, long h) {
  float *y = new(H * h), p[S];
  for (long t = 0; t < N * S; t++)
    for (long head = 0; head < H; head++) {
      const long start = t - t % S, kv = head / (H / K); /* a token sees those before it, and itself */
      float top = -INFINITY, total = 0;
      for (long s = start; s <= t; s++) {
        p[s - start] = 0;
        for (long i = 0; i < h; i++) p[s - start] += q[(t * H + head) * h + i] * k[(s * K + kv) * h + i];
        top = fmaxf(top, p[s - start] /= sqrtf(h));
      }
      for (long s = start; s <= t; s++) total += p[s - start] = expf(p[s - start] - top);
      for (long s = start; s <= t; s++)
        for (long i = 0; i < h; i++)
          y[(t * H + head) * h + i] += p[s - start] / total * v[(s * K + kv) * h + i];
    }
  return y;
}

int main(int count, char **words) {
  if (count != 8) fail("expected", "MODEL IDS OUT heads kv_heads eps theta");
  File m = open_file(words[1]);
  long H = atol(words[4]), K = atol(words[5]), D, F, V, at[2];
  int64_t *ids = tensor(open_file(words[2]), -1, "token_ids", "I64", at);
  N = at[0], S = at[1];
  float *table = tensor(m, -1, "model.embed_tokens.weight", "F32", at), eps = atof(words[6]);
  float *x = new(D = at[1]), *y;
  long h = (tensor(m, 0, "self_attn.q_proj.weight", "F32", at), at[0] / H);
  F = (tensor(m, 0, "mlp.up_proj.weight", "F32", at), at[0]);
  V = (tensor(m, -1, "lm_head.weight", "F32", at), at[0]);
  for (long t = 0; t < N * S; t++) memcpy(x + t * D, table + ids[t] * D, D * sizeof *x);
  step(-1, "embed", x, 1, D);
  for (long b = 0; sprintf(prefix, "layers.%ld.", b), strstr(m.header, prefix); b++) {
    step(b, "resid_pre", x, 1, D);
    step(b, "attn_norm", y = rms_norm(x, m, b, "input_layernorm.weight", eps), 1, D);
    float *q = linear(y, m, b, "self_attn.q_proj.weight"), *k = linear(y, m, b, "self_attn.k_proj.weight");
    float *v = linear(y, m, b, "self_attn.v_proj.weight");
    step(b, "q", q, H, h), step(b, "k", k, K, h), step(b, "v", v, K, h);
    rotate(q, H, h, atof(words[7])), rotate(k, K, h, atof(words[7]));
    step(b, "q_rope", q, H, h), step(b, "k_rope", k, K, h);
    step(b, "attn_out", y = linear(attend(q, k, v, H, K, h), m, b, "self_attn.o_proj.weight"), 1, D);
    for (long i = 0; i < N * S * D; i++) x[i] += y[i];
    step(b, "resid_mid", x, 1, D);
    step(b, "mlp_norm", y = rms_norm(x, m, b, "post_attention_layernorm.weight", eps), 1, D);
    float *gate = linear(y, m, b, "mlp.gate_proj.weight"), *up = linear(y, m, b, "mlp.up_proj.weight");
    for (long i = 0; i < N * S * F; i++) up[i] *= gate[i] / (1 + expf(-gate[i])); /* silu(gate) up */
    step(b, "mlp_out", y = linear(up, m, b, "mlp.down_proj.weight"), 1, D);
    for (long i = 0; i < N * S * D; i++) x[i] += y[i];
    step(b, "resid_post", x, 1, D);
  }
  step(-1, "final_norm", x = rms_norm(x, m, -1, "model.norm.weight", eps), 1, D);
  step(-1, "logits", linear(x, m, -1, "lm_head.weight"), 1, V);
  put("token_ids", "I64", (sprintf(prefix, "%ld", S), prefix), ids, N * S * sizeof *ids);
  uint64_t length = strlen(strcat(header, "}"));
  FILE *file = fopen(words[3], "wb");
  if (!file || fwrite(&length, 8, 1, file) != 1 || fwrite(header, 1, length, file) != length ||
      fwrite(data, size, 1, file) != 1 || fclose(file))
    fail("cannot write", words[3]);
}
