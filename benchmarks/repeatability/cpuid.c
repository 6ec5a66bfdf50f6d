/* Answers CPUID as another x86-64 processor would (see portable.py).
 *
 * Linux lets a process trap CPUID (arch_prctl(ARCH_CPUID, 0), if /proc/cpuinfo names
 * cpuid_fault). Loaded with LD_PRELOAD, this answers from the variables
 *   CPUID_VENDOR=amd|intel  CPUID_FAMILY, CPUID_MODEL  CPUID_ISA=avx2|avx512|vnni|all
 *   CPUID_L1, CPUID_L2, CPUID_L3 (KiB)  CPUID_CORES
 * It can take instructions away, not add them. The trap begins when this library is
 * initialised: ld.so has read CPUID before, so that glibc's own choice of code (exp, sin,
 * memcpy, ...) is not forced; GLIBC_TUNABLES does that.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef ARCH_SET_CPUID
#define ARCH_SET_CPUID 0x1012
#endif

static int amd, family, model, avx512 = 2, cores = 2;
static uint32_t l1, l2, l3;
static struct sigaction previous;

static long switched(long on) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, on); }

static void real(uint32_t r[4], uint32_t leaf, uint32_t sub) {
  __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}

static void cache(uint32_t r[4], uint32_t type, uint32_t level, uint32_t kib, uint32_t ways, uint32_t shared) {
  uint32_t sets = kib * 1024 / 64 / ways;
  r[0] = type | level << 5 | 1 << 8 | (shared - 1) << 14 | (amd ? 0 : (cores - 1) << 26);
  r[1] = 63 | (ways - 1) << 22;
  r[2] = sets - 1;
  r[3] = 0;
}

static void caches(uint32_t r[4], uint32_t sub) {
  switch (sub) {
    case 0: cache(r, 1, 1, l1, l1 % 12 ? 8 : 12, 1); break;
    case 1: cache(r, 2, 1, 32, 8, 1); break;
    case 2: cache(r, 3, 2, l2, l2 % 5 ? 8 : 10, 1); break;
    case 3: cache(r, 3, 3, l3, 16, cores); break;
    default: memset(r, 0, 16);
  }
}

static void answer(uint32_t r[4], uint32_t leaf, uint32_t sub) {
  static const uint32_t name[2][3] = {{0x756e6547, 0x6c65746e, 0x49656e69}, {0x68747541, 0x444d4163, 0x69746e65}};
  real(r, leaf, sub);
  if (leaf == 0 || leaf == 0x80000000) {
    if (amd) r[0] = leaf ? 0x80000020 : 0x10;
    if (leaf == 0 || amd) r[1] = name[amd][0], r[2] = name[amd][1], r[3] = name[amd][2];
  } else if (leaf == 1) {
    if (family)
      r[0] = (family > 15 ? (family - 15) << 20 | 15 << 8 : family << 8) | (model >> 4) << 16 | (model & 15) << 4 | 1;
  } else if (leaf == 7 && sub == 0) {
    if (avx512 < 2) r[2] &= ~(1u << 11);                       /* VNNI */
    if (avx512 < 1) {
      r[1] &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31);
      r[2] &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14);
      r[3] &= ~(1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25);
    }
  } else if (leaf == 7 && sub == 1) {
    r[0] &= ~(1u << 5 | 1u << 4);
  } else if (leaf == 4) {
    if (amd) memset(r, 0, 16);
    else if (l1) caches(r, sub);
  } else if (leaf == 0x8000001d && amd) {
    caches(r, sub);
  } else if (leaf == 0x80000001 && amd) {
    r[2] |= 1u << 22;
  } else if (leaf == 0x80000005 && amd) {
    r[0] = r[1] = 0, r[2] = l1 << 24 | 8 << 16 | 1 << 8 | 64, r[3] = 32u << 24 | 8 << 16 | 1 << 8 | 64;
  } else if (leaf == 0x80000006 && amd) {
    r[0] = r[1] = 0, r[2] = l2 << 16 | 6 << 12 | 1 << 8 | 64, r[3] = (l3 / 512) << 18 | 9 << 12 | 1 << 8 | 64;
  } else if (leaf == 2 && amd) {
    memset(r, 0, 16);
  } else if (leaf > 0x80000008 && amd) {
    memset(r, 0, 16);
    if (leaf == 0x80000008) real(r, leaf, sub);
  }
}

static void trapped(int number, siginfo_t *info, void *context) {
  greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *at = (const unsigned char *)g[REG_RIP];
  if (info->si_code != SI_KERNEL || at[0] != 0x0f || at[1] != 0xa2) {
    sigaction(SIGSEGV, &previous, NULL);
    return;
  }
  uint32_t r[4];
  switched(1);
  answer(r, (uint32_t)g[REG_RAX], (uint32_t)g[REG_RCX]);
  switched(0);
  g[REG_RAX] = r[0], g[REG_RBX] = r[1], g[REG_RCX] = r[2], g[REG_RDX] = r[3];
  g[REG_RIP] += 2;
}

static int number(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text ? atoi(text) : otherwise;
}

__attribute__((constructor(101))) static void begin(void) {
  const char *vendor = getenv("CPUID_VENDOR"), *isa = getenv("CPUID_ISA");
  if (!vendor) return;
  amd = !strcmp(vendor, "amd");
  avx512 = !isa || !strcmp(isa, "all") || !strcmp(isa, "vnni") ? 2 : strcmp(isa, "avx512") ? 0 : 1;
  family = number("CPUID_FAMILY", 0), model = number("CPUID_MODEL", 0);
  l1 = number("CPUID_L1", amd ? 32 : 0), l2 = number("CPUID_L2", amd ? 512 : 1024), l3 = number("CPUID_L3", 32768);
  cores = number("CPUID_CORES", 2);
  struct sigaction ours = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGSEGV, &ours, &previous);
  if (switched(0)) _exit(125);
}
