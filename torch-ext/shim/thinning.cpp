// The loops of thinning.hpp, in a file of their own to be compiled for each instruction set.
//
// Random bits are Philox4x32-10's: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.

#include "thinning.hpp"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__)
#define BEIGE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define BEIGE_CLONES
#endif

namespace {

// Counters side by side, and the numbers that they make.
constexpr uint64_t kLanes = 16;
constexpr uint64_t kWords = 4 * kLanes;
// Of each word a number has one half.
constexpr uint64_t kBlock = 2 * kWords;

constexpr int kRounds = 10;
constexpr uint64_t kMultipliers[2] = {0xD2511F53, 0xCD9E8D57};
constexpr uint32_t kWeyl[2] = {0x9E3779B9, 0xBB67AE85};

// The bits of block `block`: those of its counters' first words, then of their second ones, and so on.
BEIGE_CLONES void fill(uint32_t* all, uint64_t block, uint64_t seed) {
  uint32_t* const words[4] = {all, all + kLanes, all + 2 * kLanes, all + 3 * kLanes};
  for (uint64_t lane = 0; lane < kLanes; ++lane) {
    const uint64_t counter = block * kLanes + lane;
    words[0][lane] = static_cast<uint32_t>(counter);
    words[1][lane] = static_cast<uint32_t>(counter >> 32);
    words[2][lane] = 0;
    words[3][lane] = 0;
  }
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < kRounds; ++round) {
    for (uint64_t lane = 0; lane < kLanes; ++lane) {
      const uint64_t left = kMultipliers[0] * words[0][lane];
      const uint64_t right = kMultipliers[1] * words[2][lane];
      words[0][lane] = static_cast<uint32_t>(right >> 32) ^ words[1][lane] ^ key[0];
      words[1][lane] = static_cast<uint32_t>(right);
      words[2][lane] = static_cast<uint32_t>(left >> 32) ^ words[3][lane] ^ key[1];
      words[3][lane] = static_cast<uint32_t>(left);
    }
    key[0] += kWeyl[0];
    key[1] += kWeyl[1];
  }
}

BEIGE_CLONES void apply(float* out, const float* in, const uint16_t* bits, uint64_t count, uint32_t threshold,
                        float scale) {
  for (uint64_t i = 0; i < count; ++i) out[i] = bits[i] < threshold ? 0.0F : in[i] * scale;
}

BEIGE_CLONES void apply_to(float* out, const float* in, const float* rest, const uint16_t* bits, uint64_t count,
                           uint32_t threshold, float scale) {
  for (uint64_t i = 0; i < count; ++i) out[i] = (bits[i] < threshold ? 0.0F : in[i] * scale) + rest[i];
}

}  // namespace

namespace beige {

void thin(float* out, const float* in, const float* rest, uint64_t first, uint64_t count, const Thinning& how) {
  uint32_t words[kWords];
  uint16_t bits[kBlock];
  for (uint64_t done = 0; done < count;) {
    const uint64_t place = first + done;
    const uint64_t skipped = place % kBlock;
    const uint64_t part = std::min(kBlock - skipped, count - done);
    fill(words, place / kBlock, how.seed);
    std::memcpy(bits, words, sizeof(bits));
    if (rest == nullptr) {
      apply(out + done, in + done, bits + skipped, part, how.threshold, how.scale);
    } else {
      apply_to(out + done, in + done, rest + done, bits + skipped, part, how.threshold, how.scale);
    }
    done += part;
  }
}

}  // namespace beige
