// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * early_cr4=1 on the command line: SSE, AVX, SMAP and UMIP are switched on (CR4, XCR0) when the command line is read, and not later, one
 * after the other. A second early_cr4=0 takes nothing back.
 *
 * QEMU tells its translations apart by them, and translates code again that ran before and runs after. What the kernel was told to do
 * without stays off.
 */
#include <linux/errno.h>
#include <linux/init.h>
#include <linux/kstrtox.h>

#include <asm/cpufeature.h>
#include <asm/fpu/types.h>
#include <asm/fpu/xcr.h>
#include <asm/tlbflush.h>

static int __init set_early_cr4(char *value)
{
	unsigned long bits = X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT;
	bool wanted;

	if (!value || kstrtobool(value, &wanted))
		return -EINVAL;
	if (!wanted)
		return 0;
	if (boot_cpu_has(X86_FEATURE_SMAP))
		bits |= X86_CR4_SMAP;
	if (boot_cpu_has(X86_FEATURE_UMIP))
		bits |= X86_CR4_UMIP;
	if (boot_cpu_has(X86_FEATURE_XSAVE))
		bits |= X86_CR4_OSXSAVE;
	cr4_set_bits(bits);
	if (boot_cpu_has(X86_FEATURE_XSAVE) && boot_cpu_has(X86_FEATURE_AVX))
		xsetbv(XCR_XFEATURE_ENABLED_MASK, XFEATURE_MASK_FPSSE | XFEATURE_MASK_YMM);
	return 0;
}
early_param("early_cr4", set_early_cr4);
