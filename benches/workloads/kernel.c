// The program that the benchmark of kernel mode runs: loops of system calls that make the kernel allocate.
// Commands come in on stdin, one a line; each is answered by one line on stdout. Nothing here knows a tracer.
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const double SECONDS = 0.5; // how long a stage is measured
enum { BATCH = 32, MESSAGE = 1000 };

extern char **environ;
static char *self;

static void check(int failed, const char *what)
{
	if (failed) {
		perror(what);
		exit(1);
	}
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static double used_by(int who)
{
	struct rusage usage;

	getrusage(who, &usage);
	return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
	       (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

// CPU time of this process and of the children that it has waited for, the kernel's part of it included.
static double used(void)
{
	return used_by(RUSAGE_SELF) + used_by(RUSAGE_CHILDREN);
}

static void sockets(void)
{
	static const char message[MESSAGE];
	int ends[2];

	check(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "socketpair");
	check(write(ends[0], message, sizeof(message)) != sizeof(message), "write");
	close(ends[0]);
	close(ends[1]);
}

static void files(void)
{
	static const char name[] = "memleak-bench-file";
	int file = open(name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);

	check(file < 0, name);
	close(file);
	check(unlink(name), name);
}

static void processes(void)
{
	char *arguments[] = { self, "nothing", NULL };
	pid_t child;
	int status;

	check(posix_spawn(&child, self, NULL, NULL, arguments, environ), self);
	check(waitpid(child, &status, 0) != child || status, "a child");
}

// Microseconds of CPU time for one turn.
static double measure(void (*turn)(void))
{
	double begin = now(), cpu = used();
	long count = 0;

	do {
		for (int i = 0; i < BATCH; i++)
			turn();
		count += BATCH;
	} while (now() - begin < SECONDS);
	return (used() - cpu) / (double)count * 1e6;
}

static double obey(const char *command)
{
	if (!strcmp(command, "sockets\n"))
		return measure(sockets);
	if (!strcmp(command, "files\n"))
		return measure(files);
	if (!strcmp(command, "processes\n"))
		return measure(processes);
	fprintf(stderr, "unknown command: %s", command);
	exit(2);
}

int main(int count, char **arguments)
{
	char command[64];

	self = arguments[0];
	if (count > 1 && !strcmp(arguments[1], "nothing"))
		return 0;
	while (fgets(command, sizeof(command), stdin)) {
		printf("%.3f\n", obey(command));
		fflush(stdout);
	}
	return 0;
}
