/* A program with one named leak of an odd, exact size per allocator function, and blocks that it does free.
 * It knows nothing of the tracer. "leaks" leaks and ends, "leaks STATUS" with that status;
 * "leaks wait" waits for a line on stdin before and after. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

static void *volatile kept;

/* Called after each allocation: a store that the compiler must do, so that no call above becomes a jump. */
static void keep(void *block)
{
	if (!block)
		abort();
	kept = block;
}

NOINLINE static void leak_malloc(void)
{
	for (int i = 0; i < 7; i++)
		keep(malloc(1237));
}

NOINLINE static void leak_calloc(void)
{
	for (int i = 0; i < 5; i++)
		keep(calloc(3, 411));
}

NOINLINE static void leak_realloc(void)
{
	for (int i = 0; i < 3; i++) {
		void *small = malloc(17);

		keep(small);
		keep(realloc(small, 2003));
	}
}

NOINLINE static void leak_aligned(void)
{
	void *block;

	for (int i = 0; i < 4; i++)
		if (posix_memalign(&block, 64, 1531) == 0)
			keep(block);
}

NOINLINE static void leak_large(void)
{
	for (int i = 0; i < 3; i++)
		keep(malloc(300001));
}

NOINLINE static void leak_mapping(void)
{
	keep(mmap(NULL, 5 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

/* libc allocates on our behalf: only an unwinder that needs no frame pointers finds this function. */
NOINLINE static void leak_through_libc(void)
{
	char text[101];

	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = 0;
	for (int i = 0; i < 6; i++)
		keep(strdup(text));
}

NOINLINE static void *leak_in_thread(void *unused)
{
	keep(malloc(777));
	return unused;
}

static char *page;

/* Makes the page what the code wants that has come here, and so lets it go on. */
static void leak_in_handler(int signal)
{
	(void)signal;
	keep(malloc(919));
	if (mprotect(page, sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE))
		abort();
}

static volatile char value = 1;

/* Calls nothing, so that a processor with a link register has its return address there when the signal comes: not at its
 * first instruction. */
NOINLINE static void touch(volatile char *where)
{
	*where = value;
}

NOINLINE static void leak_by_signal(void)
{
	page = mmap(NULL, sysconf(_SC_PAGESIZE), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED || signal(SIGSEGV, leak_in_handler) == SIG_ERR)
		abort();
	touch(page);
	munmap(page, sysconf(_SC_PAGESIZE));
}

NOINLINE static void free_everything(void)
{
	for (int i = 1; i < 2000; i++) {
		void *block = malloc(i);

		keep(block);
		block = realloc(block, 2 * i);
		keep(block);
		free(block);
	}
}

static void wait_for_line(const char *say)
{
	char line[16];

	puts(say);
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		exit(1);
}

int main(int argc, char **argv)
{
	int waits = argc > 1 && !strcmp(argv[1], "wait");
	pthread_t thread;

	setvbuf(stdin, NULL, _IONBF, 0);	/* stdio's own buffers are no part of the figures */
	setvbuf(stdout, NULL, _IONBF, 0);
	if (waits)
		wait_for_line("ready");
	leak_malloc();
	leak_calloc();
	leak_realloc();
	leak_aligned();
	leak_large();
	leak_mapping();
	leak_through_libc();
	leak_by_signal();
	if (pthread_create(&thread, NULL, leak_in_thread, NULL))
		return 1;
	pthread_join(thread, NULL);
	free_everything();
	if (waits)
		wait_for_line("leaked");
	return argc > 1 ? atoi(argv[1]) : 0;
}
