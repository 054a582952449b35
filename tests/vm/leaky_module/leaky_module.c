// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
/* A kernel module that leaks known amounts from named functions, and churns memory that must not be reported.
 * It knows nothing of the tracer: it starts when loaded, stops after `leaks` rounds, and frees what it leaked when
 * `release` is written or when it is unloaded. */

#include <linux/gfp.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/slab.h>
#include <linux/timer.h>
#include <linux/version.h>
#include <linux/workqueue.h>

#define MAX_LEAKS 64
#define ROUNDS_PER_SECOND 10
#define LARGE_BYTES (1 << 20)
#define SMALL_BYTES 96
#define OBJECT_BYTES 520
#define PAGES_ORDER 2
#define PERCPU_BYTES 24
#define BULK 8

static unsigned int leaks = 5;
module_param(leaks, uint, 0444);
MODULE_PARM_DESC(leaks, "how many blocks each function leaks, ten a second");

static bool keep;
module_param(keep, bool, 0444);
MODULE_PARM_DESC(keep, "leave the kmalloc and page blocks behind when unloaded");

static void *large[MAX_LEAKS], *small[MAX_LEAKS], *object[MAX_LEAKS];
static struct page *pages[MAX_LEAKS];
static void __percpu *counters[MAX_LEAKS];
static unsigned int large_count, small_count, object_count, pages_count, percpu_count, churn_count;
static struct kmem_cache *object_cache, *bulk_cache;

/* ---- leaks: each timer has its own callback, so that each stack has its own name ---- */

static struct timer_list large_timer, small_timer, object_timer, pages_timer, percpu_timer, churn_timer;

/* Asks for another round unless this was the last. */
static bool another(struct timer_list *timer, unsigned int done)
{
	if (done < leaks)
		mod_timer(timer, jiffies + HZ / ROUNDS_PER_SECOND);
	return done <= leaks;
}

static noinline void leak_large(struct timer_list *timer)
{
	if (another(timer, large_count + 1))
		large[large_count++] = kmalloc(LARGE_BYTES, GFP_ATOMIC);
}

static noinline void leak_small(struct timer_list *timer)
{
	if (another(timer, small_count + 1))
		small[small_count++] = kmalloc(SMALL_BYTES, GFP_ATOMIC);
}

static noinline void leak_object(struct timer_list *timer)
{
	if (another(timer, object_count + 1))
		object[object_count++] = kmem_cache_alloc(object_cache, GFP_ATOMIC);
}

static noinline void leak_pages(struct timer_list *timer)
{
	if (another(timer, pages_count + 1))
		pages[pages_count++] = alloc_pages(GFP_ATOMIC, PAGES_ORDER);
}

static noinline void leak_percpu(struct timer_list *timer)
{
	if (another(timer, percpu_count + 1))
		counters[percpu_count++] = __alloc_percpu_gfp(PERCPU_BYTES, 8, GFP_ATOMIC);
}

/* ---- churn: allocated and freed in every way the kernel has; nothing of it may stay in a report ---- */

struct rcu_block {
	struct rcu_head rcu;
	char payload[200];
};

static noinline void churn_kmalloc(void)
{
	kfree(kmalloc(SMALL_BYTES, GFP_ATOMIC));
	kfree(kmalloc(LARGE_BYTES / 64, GFP_ATOMIC));
}

static noinline void churn_rcu(void)
{
	struct rcu_block *block = kmalloc(sizeof(*block), GFP_ATOMIC);

	if (block)
		kfree_rcu(block, rcu);
}

/* Allocated one by one, freed in bulk: the bulk path has its own events, or none. */
static noinline void churn_bulk_free(void)
{
	void *objects[BULK];
	int n = 0;

	while (n < BULK && (objects[n] = kmem_cache_alloc(bulk_cache, GFP_ATOMIC)))
		n++;
	if (n)
		kmem_cache_free_bulk(bulk_cache, n, objects);
}

/* The same the other way round, from another cache: this one's frees must not pass for those of the other. */
static noinline void churn_bulk_alloc(void)
{
	void *objects[BULK];
	int n = BULK;

	if (kmem_cache_alloc_bulk(object_cache, GFP_ATOMIC, BULK, objects))
		while (n > 0)
			kmem_cache_free(object_cache, objects[--n]);
}

static noinline void churn_realloc(void)
{
	void *block = kmalloc(SMALL_BYTES, GFP_ATOMIC), *bigger = krealloc(block, 8 * SMALL_BYTES, GFP_ATOMIC);

	kfree(bigger ? bigger : block);
}

static noinline void churn_pages(void)
{
	struct page *page = alloc_pages(GFP_ATOMIC, PAGES_ORDER);
	void *exact = alloc_pages_exact(3 * PAGE_SIZE, GFP_ATOMIC);

	if (page)
		__free_pages(page, PAGES_ORDER);
	if (exact)
		free_pages_exact(exact, 3 * PAGE_SIZE);
}

static noinline void churn_percpu(void)
{
	free_percpu(__alloc_percpu_gfp(PERCPU_BYTES, 8, GFP_ATOMIC));
}

/* Freed in another context, later, by a worker: frees do not have to follow their allocation's path. */
static void *handed_over[MAX_LEAKS];
static unsigned int handed_count, taken_count;

static void free_handed_over(struct work_struct *work)
{
	while (taken_count < READ_ONCE(handed_count))
		kfree(handed_over[taken_count++]);
}

static DECLARE_WORK(free_work, free_handed_over);

static noinline void churn_handed_over(void)
{
	handed_over[handed_count] = kmalloc(SMALL_BYTES, GFP_ATOMIC);
	WRITE_ONCE(handed_count, handed_count + 1);
	schedule_work(&free_work);
}

static void churn(struct timer_list *timer)
{
	if (!another(timer, ++churn_count))
		return;
	churn_kmalloc();
	churn_rcu();
	churn_bulk_free();
	churn_bulk_alloc();
	churn_realloc();
	churn_pages();
	churn_percpu();
	churn_handed_over();
}

/* ---- loading, releasing, unloading ---- */

static void release_objects(void)
{
	while (object_count)
		if (object[--object_count])
			kmem_cache_free(object_cache, object[object_count]);
}

static void release_all(void)
{
	release_objects();
	while (large_count)
		kfree(large[--large_count]);
	while (small_count)
		kfree(small[--small_count]);
	while (pages_count)
		if (pages[--pages_count])
			__free_pages(pages[pages_count], PAGES_ORDER);
	while (percpu_count)
		free_percpu(counters[--percpu_count]);
}

static void stop_timers(void)
{
	struct timer_list *timers[] = { &large_timer, &small_timer, &object_timer, &pages_timer, &percpu_timer, &churn_timer };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(timers); i++)
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
		timer_delete_sync(timers[i]);
#else
		del_timer_sync(timers[i]);
#endif
	flush_work(&free_work);
}

/* `release` is write-only: any value stops the leaking and frees what was leaked. */
static int set_release(const char *value, const struct kernel_param *param)
{
	stop_timers();
	release_all();
	return 0;
}

static const struct kernel_param_ops release_ops = { .set = set_release };
module_param_cb(release, &release_ops, NULL, 0200);
MODULE_PARM_DESC(release, "free everything that was leaked");

/* `leaked` says how many blocks each function holds: a reader waits for it to reach `leaks`. */
static int get_leaked(char *buffer, const struct kernel_param *param)
{
	unsigned int least = min(min3(large_count, small_count, object_count), min(pages_count, percpu_count));

	return sprintf(buffer, "%u\n", churn_count < least ? churn_count : least);
}

static const struct kernel_param_ops leaked_ops = { .get = get_leaked };
module_param_cb(leaked, &leaked_ops, NULL, 0444);
MODULE_PARM_DESC(leaked, "how many blocks each function has leaked so far");

static void start(struct timer_list *timer, void (*callback)(struct timer_list *))
{
	timer_setup(timer, callback, TIMER_PINNED);
	mod_timer(timer, jiffies + HZ / ROUNDS_PER_SECOND);
}

/* A cache with a constructor is never merged with another of its size, so its name stays its own. */
static void construct_object(void *object_memory)
{
	memset(object_memory, 0, OBJECT_BYTES);
}

static void destroy_caches(void)
{
	kmem_cache_destroy(object_cache);
	kmem_cache_destroy(bulk_cache);
}

static int __init leaky_init(void)
{
	leaks = min(leaks, (unsigned int)MAX_LEAKS);
	object_cache = kmem_cache_create("leaky_objects", OBJECT_BYTES, 8, 0, construct_object);
	bulk_cache = kmem_cache_create("leaky_bulk", OBJECT_BYTES, 8, 0, construct_object);
	if (!object_cache || !bulk_cache) {
		destroy_caches();
		return -ENOMEM;
	}
	start(&large_timer, leak_large);
	start(&small_timer, leak_small);
	start(&object_timer, leak_object);
	start(&pages_timer, leak_pages);
	start(&percpu_timer, leak_percpu);
	start(&churn_timer, churn);
	return 0;
}

static void __exit leaky_exit(void)
{
	stop_timers();
	if (keep)
		release_objects(); /* their cache cannot outlive the module */
	else
		release_all();
	rcu_barrier();
	destroy_caches();
}

module_init(leaky_init);
module_exit(leaky_exit);
MODULE_LICENSE("Dual BSD/GPL");
MODULE_DESCRIPTION("Leaks known amounts of kernel memory, for memleak's tests");
