# Shell functions for the checks: waiting for what a program says, tracing a waiting program, loading the module.
# Every wait is for a condition and has an end; the exit status of a check is its last command's.

MODULE=/sys/module/leaky_module/parameters
LEAKS=5

# until_true COMMAND...: returns once it succeeds; gives up after 40 seconds.
until_true() {
	tries=400
	until "$@" 2>/dev/null; do
		tries=$((tries - 1))
		[ $tries -gt 0 ] || { echo "gave up waiting for: $*"; return 1; }
		sleep 0.1
	done
}

# until_says FILE REGEX PROCESS: returns once the file holds the words; fails when the process that writes it has gone.
until_says() {
	until_true says_or_gone "$@" && grep -q "$2" "$1"
}

# A process that ended but was not waited for yet is gone as well.
says_or_gone() { grep -q "$2" "$1" || ! grep -q "^State:.[^ZX]" "/proc/$3/status"; }

# attach PROGRAM OPTIONS...: start the program, trace it, let it leak and end; print the tracer's last report. With $beside,
# another tracer with those options is there first.
attach() {
	program=$1; shift
	rm -f go said report notes; mkfifo go
	$program wait <go >said & target=$!
	exec 3>go
	until_says said ready $target || return 1
	if [ -n "$beside" ]; then
		memleak -p $target $beside 3600 >other 2>&1 & other=$!
		until_says other Attaching $other || { cat other; return 1; }
	fi
	memleak -v -p $target "$@" 3600 >report 2>notes & tracer=$!
	if until_says report Attaching $tracer; then
		echo >&3
		until_says said leaked $target && echo >&3
	fi
	exec 3>&-	# the program ends, if it has not already
	wait $tracer; status=$?
	[ -z "$beside" ] || wait $other
	cat notes report
	return $status
}

leaked() { [ "$(cat $MODULE/leaked)" -ge $LEAKS ]; }

# trace_kernel MODULE-OPTIONS [OPTIONS...]: trace the kernel from before the module is loaded until it holds its blocks.
trace_kernel() {
	module_options=$1; shift
	rm -f report notes
	memleak -v -o 0 --top 1000 --module leaky_module "$@" >>report 2>notes & tracer=$!
	until_says report Attaching $tracer || { cat notes; return 1; }
	insmod /leaky_module.ko leaks=$LEAKS $module_options || return 1
	# quiet while it leaks: a timer that interrupts memleak's own program is not seen (it says so), and emulation is slow
	sleep 1
	until_true leaked
}

# trace_cache NAME: trace that cache alone and report its blocks one by one; what memleak says where it can't.
trace_cache() {
	trace_kernel '' -a --cache "$1" || return 0
	report_and_stop && rmmod leaky_module
}

# trace_sleeper: trace the kernel while a process starts that stays.
trace_sleeper() {
	rm -f report notes
	memleak -v -o 0 3600s >>report 2>notes & tracer=$!
	until_says report Attaching $tracer || { cat notes; return 1; }
	sleep 1000 & sleeper=$!
	until_true grep -q sleep /proc/$sleeper/comm
	report_and_stop
	kill $sleeper
}

# trace_verified: trace the kernel; print how many instructions of each program its verifier followed.
trace_verified() {
	trace_kernel '' --percpu || return 1
	cat /proc/$tracer/fdinfo/* | grep ^verified_insns | sort -rnk 2
	report_and_stop >/dev/null && rmmod leaky_module
}

# trace_page_cache MIB: trace the kernel while a file of that size is written to memory.
trace_page_cache() {
	rm -f report notes
	memleak -v -o 0 --top 1000 3600s >>report 2>notes & tracer=$!
	until_says report Attaching $tracer || { cat notes; return 1; }
	dd if=/dev/zero of=file bs=1M count="$1" 2>/dev/null
	report_and_stop
	status=$?
	rm file
	return $status
}

# report_and_stop: end the tracer as Ctrl-C does, which makes it report once more; only that report is printed.
report_and_stop() {
	echo last report: >>report
	kill -INT $tracer; wait $tracer; status=$?
	cat notes; sed '1,/^last report:/d' report
	return $status
}
