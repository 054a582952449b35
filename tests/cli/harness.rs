//! The tests' own report parser, tested, since every other test believes it.
//! Nothing here runs memleak.

use crate::support::report::{Held, parse};

#[test]
fn reads_a_report_back() {
    let text = "ready[11:16:33] Top 10 stacks with outstanding allocations:\n\
                \taddr = 948cd0 size = 16 tid 7 age 1.5s\n\
                \t80 bytes in 5 allocations from stack\n\
                \t\t0x000055dde4ed4181\toperator new[](unsigned long)+0x6d [libx.so] a b.c:7\n\
                \t\t\tinner [inlined] a.c:9\n\
                \t\t[stack not stored]\n\
                done\n";
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let report = &parse(&lines)[0];
    assert_eq!((report.top, report.total()), (10, Held::each(5, 16)));
    assert_eq!(
        (report.allocations[0].address, report.allocations[0].size),
        (0x0094_8cd0, 16)
    );
    assert_eq!(report.allocations[0].rest, "tid 7 age 1.5s");
    let stack = &report.stacks[0];
    assert_eq!(stack.frames[0].symbol, "operator new[](unsigned long)");
    assert_eq!(stack.frames[0].module, "libx.so");
    assert_eq!(stack.frames[0].location, "a b.c:7");
    assert_eq!(
        (&*stack.frames[1].symbol, &*stack.frames[1].module),
        ("inner", "inlined")
    );
    assert_eq!(stack.notes, ["[stack not stored]"]);
}
