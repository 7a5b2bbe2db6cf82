/*
 * ptrace(2) for the test kernel, on processors with AMX (preloaded by guest.py).
 *
 * User-Mode Linux 6.1 saves a process's extended registers in 2696 bytes: all up to AVX-512 and PKRU. With AMX they
 * take 11008, and Linux refuses to set fewer than all (EFAULT, xstateregs_set() in arch/x86/kernel/fpu/regset.c), so
 * the first process of the guest ends. Here what comes after the part that User-Mode Linux knows is zero: the
 * registers of AMX in their initial state. No process gets to use these without asking (arch_prctl(2)).
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MOST = 1 << 16 };

static char registers[MOST];
static size_t size; /* bytes of all registers; 0: not known yet */

static long get(pid_t process)
{
	struct iovec all = { registers, MOST };
	long result = syscall(SYS_ptrace, PTRACE_GETREGSET, process, NT_X86_XSTATE, &all);

	if (result == 0)
		size = all.iov_len;
	return result;
}

static long get_part(pid_t process, struct iovec *part)
{
	if (get(process) != 0)
		return -1;
	if (part->iov_len > size)
		part->iov_len = size;
	memcpy(part->iov_base, registers, part->iov_len);
	return 0;
}

static long set_part(pid_t process, const struct iovec *part)
{
	struct iovec all = { registers, 0 };

	if (size == 0 && get(process) != 0)
		return -1;
	if (part->iov_len > size) {
		errno = EFAULT;
		return -1;
	}
	memset(registers, 0, size);
	memcpy(registers, part->iov_base, part->iov_len);
	all.iov_len = size;
	return syscall(SYS_ptrace, PTRACE_SETREGSET, process, NT_X86_XSTATE, &all);
}

/* As glibc's, which returns the word that was peeked. */
long ptrace(enum __ptrace_request request, ...)
{
	va_list rest;
	pid_t process;
	void *address, *data;
	long word;

	va_start(rest, request);
	process = va_arg(rest, pid_t);
	address = va_arg(rest, void *);
	data = va_arg(rest, void *);
	va_end(rest);
	if (request == PTRACE_GETREGSET && (long)address == NT_X86_XSTATE)
		return get_part(process, data);
	if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE)
		return set_part(process, data);
	if (request != PTRACE_PEEKTEXT && request != PTRACE_PEEKDATA && request != PTRACE_PEEKUSER)
		return syscall(SYS_ptrace, request, process, address, data);
	if (syscall(SYS_ptrace, request, process, address, &word) != 0)
		return -1;
	errno = 0;
	return word;
}
