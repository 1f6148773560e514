/*
 * Gives fsx O_DIRECT, which it has no option for: preloaded, it adds the flag to each open of the file named by
 * FSX_DIRECT, and says so on standard error. tests/posix/fsx.rs compiles it and counts what it says.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char said[] = "opened with O_DIRECT\n";

int open64(const char *path, int flags, ...)
{
	const char *direct = getenv("FSX_DIRECT");
	mode_t mode = 0;
	int fd;

	if (flags & (O_CREAT | O_TMPFILE)) {
		va_list more;
		va_start(more, flags);
		mode = va_arg(more, mode_t);
		va_end(more);
	}
	if (!direct || strcmp(path, direct) != 0)
		return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
	fd = syscall(SYS_openat, AT_FDCWD, path, flags | O_DIRECT, mode);
	if (fd >= 0 && write(STDERR_FILENO, said, sizeof(said) - 1) < 0)
		_exit(3);
	return fd;
}
