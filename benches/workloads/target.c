// The program that the overhead benchmark traces: it makes allocations on command and says what they cost it.
// Commands come in on stdin, one a line; each is answered by one line on stdout. Nothing here knows a tracer.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))
// Keeps an allocation from being optimised away.
#define USE(pointer) __asm__ volatile("" : : "r"(pointer) : "memory")

static const double SECONDS = 0.2; // how long a stage is measured
enum { BATCH = 32, BLOCK = 64 };

static double seconds(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static double now(void)
{
	return seconds(CLOCK_MONOTONIC);
}

// CPU time of this thread, the kernel's part of it included: what others run does not disturb it.
static double used(void)
{
	return seconds(CLOCK_THREAD_CPUTIME_ID);
}

// Nanoseconds per malloc/free pair.
static double pairs(void)
{
	double begin = now(), cpu = used();
	long count = 0;

	do {
		for (int i = 0; i < BATCH; i++) {
			void *block = malloc(BLOCK);

			USE(block);
			free(block);
		}
		count += BATCH;
	} while (now() - begin < SECONDS);
	return (used() - cpu) / (double)count * 1e9;
}

// The same with `frames` of this function on the stack.
static NOINLINE double pairs_under(int frames)
{
	double result = frames > 1 ? pairs_under(frames - 1) : pairs();

	__asm__ volatile("");
	return result;
}

static NOINLINE void *thread(void *result)
{
	*(double *)result = pairs_under(3);
	return NULL;
}

// Nanoseconds of its own CPU time that a pair costs each of `count` threads.
static double threads(int count)
{
	enum { MOST = 64 };
	pthread_t ids[MOST];
	double results[MOST], sum = 0;

	if (count > MOST)
		count = MOST;
	for (int i = 0; i < count; i++)
		if (pthread_create(&ids[i], NULL, thread, &results[i]))
			abort();
	for (int i = 0; i < count; i++) {
		pthread_join(ids[i], NULL);
		sum += results[i];
	}
	return sum / count;
}

// Nanoseconds per realloc of a block that grows from 16 bytes to 64 KiB.
static double growth(void)
{
	double begin = now(), cpu = used();
	long count = 0;

	do {
		void *block = NULL;

		for (size_t size = 16; size <= 65536; size *= 2) {
			block = realloc(block, size);
			USE(block);
			count++;
		}
		free(block);
	} while (now() - begin < SECONDS);
	return (used() - cpu) / (double)count * 1e9;
}

static NOINLINE void work(long turns)
{
	for (long i = 0; i < turns; i++)
		__asm__ volatile("");
}

// How many turns of work() take 100 microseconds.
static long calibrate(void)
{
	const long turns = 100000;
	double best = 1;

	for (int i = 0; i < 200; i++) {
		double begin = used(), elapsed;

		work(turns);
		elapsed = used() - begin;
		best = elapsed < best ? elapsed : best;
	}
	return (long)(100e-6 / best * (double)turns);
}

static double stretch(long turns, int allocates)
{
	double begin = used();

	for (int i = 0; i < 100; i++) {
		void *block = allocates ? malloc(BLOCK) : NULL;

		USE(block);
		work(turns);
		if (allocates)
			free(block);
	}
	return used() - begin;
}

static int ascending(const void *left, const void *right)
{
	double difference = *(const double *)left - *(const double *)right;

	return (difference > 0) - (difference < 0);
}

// By how many percent 10,000 pairs a second slow down a thread that works between them. Stretches
// of 10 milliseconds with and without pairs take turns, so that the machine's moods cancel out.
static double steady(void)
{
	enum { STRETCHES = 51 };
	double slowdowns[STRETCHES];
	long turns = calibrate();

	for (int i = 0; i < STRETCHES; i++) {
		double without = stretch(turns, 0);

		slowdowns[i] = (stretch(turns, 1) / without - 1) * 100;
	}
	qsort(slowdowns, STRETCHES, sizeof(*slowdowns), ascending);
	return slowdowns[STRETCHES / 2];
}

// Allocates under a stack that differs for each of the 2^levels values of `path`.
static NOINLINE void *leaf(unsigned path, int levels)
{
	void *block;

	if (!levels)
		return malloc(BLOCK);
	if (path & 1) {
		block = leaf(path >> 1, levels - 1);
		__asm__ volatile("nop");
	} else {
		block = leaf(path >> 1, levels - 1);
		__asm__ volatile("nop; nop");
	}
	return block;
}

// Leaves `blocks` allocated, spread evenly over `stacks` stacks of 16 frames.
static double hold(long blocks, long stacks)
{
	for (long i = 0; i < blocks; i++)
		USE(leaf((unsigned)(i % stacks), 14));
	return (double)blocks;
}

// Nanoseconds per pair, each on the next of `stacks` stacks of 16 frames.
static double scattered(long stacks)
{
	double begin = now(), cpu = used();
	long count = 0;

	do {
		for (int i = 0; i < BATCH; i++) {
			void *block = leaf((unsigned)(count++ % stacks), 14);

			USE(block);
			free(block);
		}
	} while (now() - begin < SECONDS);
	return (used() - cpu) / (double)count * 1e9;
}

// Nanoseconds per pair among `blocks` other live blocks, of `stacks` stacks; those are freed in the end.
static double among(long blocks, long stacks)
{
	struct node {
		struct node *next;
		char rest[BLOCK - sizeof(struct node *)];
	} *list = NULL;
	double result;

	for (long i = 0; i < blocks; i++) {
		struct node *node = leaf((unsigned)(i % stacks), 14);

		node->next = list;
		list = node;
	}
	result = pairs_under(2);
	while (list) {
		struct node *next = list->next;

		free(list);
		list = next;
	}
	return result;
}

// Waits until both malloc and free take so long that something must be probing them.
static double watch(void)
{
	enum { SAMPLES = 10 };
	const double probed = 300e-9;
	double fastest;

	do {
		struct timespec pause = { .tv_nsec = 1000000 };

		fastest = 1;
		nanosleep(&pause, NULL);
		for (int i = 0; i < SAMPLES; i++) {
			double begin = now(), middle, end;
			void *block = malloc(BLOCK);

			USE(block);
			middle = now();
			free(block);
			end = now();
			if (middle - begin < fastest)
				fastest = middle - begin;
			if (end - middle < fastest)
				fastest = end - middle;
		}
	} while (fastest < probed);
	return fastest * 1e9;
}

static double obey(const char *command)
{
	long first, second;

	if (sscanf(command, "pairs %ld", &first) == 1)
		return pairs_under((int)first - 2); // main and obey are frames too
	if (sscanf(command, "threads %ld", &first) == 1)
		return threads((int)first);
	if (sscanf(command, "hold %ld %ld", &first, &second) == 2)
		return hold(first, second);
	if (sscanf(command, "scattered %ld", &first) == 1)
		return scattered(first);
	if (sscanf(command, "among %ld %ld", &first, &second) == 2)
		return among(first, second);
	if (!strcmp(command, "growth\n"))
		return growth();
	if (!strcmp(command, "steady\n"))
		return steady();
	if (!strcmp(command, "watch\n"))
		return watch();
	fprintf(stderr, "unknown command: %s", command);
	exit(2);
}

int main(void)
{
	char command[64];

	while (fgets(command, sizeof(command), stdin)) {
		printf("%.3f\n", obey(command));
		fflush(stdout);
	}
	return 0;
}
