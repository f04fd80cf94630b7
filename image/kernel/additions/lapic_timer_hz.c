// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * lapic_timer_hz= on the command line: how often the clock of the local APIC's timer ticks in a second, by whoever has made the processor.
 *
 * A kernel whose processor has no other timer of that precision waits 100 ms for the answer, which an emulator knows. 0 and what is
 * no number are refused, and the kernel finds out by itself.
 */
#include <linux/errno.h>
#include <linux/init.h>
#include <linux/kstrtox.h>

#include <asm/apic.h>

static int __init set_lapic_timer_hz(char *value)
{
	unsigned int hz;

	if (!value || kstrtouint(value, 10, &hz) || hz < HZ)
		return -EINVAL;
	lapic_timer_period = hz / HZ;
	return 0;
}
early_param("lapic_timer_hz", set_lapic_timer_hz);
