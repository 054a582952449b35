//! Sites in functions written byte by byte, one for each rule. No files: those are `installed_tests`.

use super::*;

const PUSH_RBX: u8 = 0x53;
const RET: u8 = 0xc3;
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
const TEST_RDI_RDI: [u8; 3] = [0x48, 0x85, 0xff];
const MOV_RAX_RDI: [u8; 3] = [0x48, 0x89, 0xf8];

fn code(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn moved(offset: u64, kind: Emulated) -> Site {
    Site::new(offset, Why::Moved(kind))
}

fn overwrites(name: &str) -> Site {
    Site::kept(Obstacle::Overwrites(name.to_string()))
}

fn leaves(name: &str) -> Site {
    Site::kept(Obstacle::Leaves(name.to_string()))
}

#[test]
fn a_first_instruction_that_is_emulated_is_best() {
    let firsts: [(&[u8], Emulated); 10] = [
        (&[0x55], Emulated::Push),
        (&[0x41, 0x57], Emulated::Push),
        (&[0x90], Emulated::Nop),
        (&[0x66, 0x90], Emulated::Nop),
        (&[0xeb, 0x00], Emulated::Jump),
        (&[0xe9, 0, 0, 0, 0], Emulated::Jump),
        (&[0x74, 0x00], Emulated::ConditionalJump),
        (&[0x7f, 0x00], Emulated::ConditionalJump),
        (&[0x0f, 0x84, 0, 0, 0, 0], Emulated::ConditionalJump),
        (&[0xe8, 0, 0, 0, 0], Emulated::Call),
    ];
    for (first, kind) in firsts {
        let site = choose_in(&code(&[first, &[RET]]), Contract::UNKNOWN);
        assert_eq!(site, Site::new(0, Why::First(kind)), "{first:x?}");
    }
}

#[test]
fn what_looks_alike_but_is_single_stepped_is_passed_over() {
    let skipped: [&[u8]; 6] = [
        &ENDBR64,
        &[0x0f, 0x1f, 0x00],             // a longer nop: emulated since 6.18 only
        &[0x0f, 0x1f, 0x44, 0x00, 0x00], // the same, five bytes
        &[0x2e, 0x66, 0x90],             // a nop with a prefix that the kernel refuses
        &MOV_RAX_RDI,
        &[0x48, 0x83, 0x3d, 0, 0, 0, 0, 0], // cmp qword [rip], 0
    ];
    for first in skipped {
        let function = code(&[first, &[PUSH_RBX, RET]]);
        let site = choose_in(&function, Contract::UNKNOWN);
        assert_eq!(
            site,
            moved(first.len() as u64, Emulated::Push),
            "{first:x?}"
        );
    }
}

#[test]
fn xchg_r8_rax_is_not_taken_for_a_nop() {
    let function = [0x41, 0x90, PUSH_RBX, RET];
    assert_eq!(choose_in(&function, Contract::UNKNOWN), overwrites("xchg"));
}

#[test]
fn an_argument_that_is_overwritten_keeps_the_symbol() {
    let writers: [(&[u8], &str); 7] = [
        (&[0x48, 0x89, 0xf7], "mov"),         // mov rdi, rsi
        (&[0x31, 0xf6], "xor"),               // xor esi, esi
        (&[0xb2, 0x01], "mov"),               // mov dl, 1
        (&[0xb5, 0x01], "mov"),               // mov ch, 1
        (&[0x49, 0x83, 0xc0, 0x01], "add"),   // add r8, 1
        (&[0x4d, 0x0f, 0x44, 0xc8], "cmove"), // cmove r9, r8: a conditional write
        (&[0x48, 0xf7, 0xe6], "mul"),         // mul rsi: rdx implicitly
    ];
    for (writer, name) in writers {
        let function = code(&[writer, &[PUSH_RBX, RET]]);
        assert_eq!(
            choose_in(&function, Contract::UNKNOWN),
            overwrites(name),
            "{writer:x?}"
        );
    }
}

#[test]
fn only_the_arguments_that_the_probe_reads_are_kept() {
    let function = [0x31, 0xf6, PUSH_RBX, RET]; // xor esi, esi
    assert_eq!(
        choose_in(&function, Contract::reads(1)),
        moved(2, Emulated::Push)
    );
    assert_eq!(choose_in(&function, Contract::reads(2)), overwrites("xor"));
    assert_eq!(choose_in(&function, Contract::reads(99)), overwrites("xor"));
}

#[test]
fn a_changed_stack_pointer_keeps_the_symbol() {
    let sub_rsp = [0x48, 0x83, 0xec, 0x18];
    let function = code(&[&sub_rsp, &[0x74, 0x00, RET]]);
    assert_eq!(choose_in(&function, Contract::reads(0)), overwrites("sub"));
}

#[test]
fn a_free_is_probed_behind_its_exit_for_null() {
    let tests: [&[u8]; 2] = [&TEST_RDI_RDI, &[0x48, 0x83, 0xff, 0x00]]; // or cmp rdi, 0
    for test in tests {
        let function = code(&[test, &[0x74, 0x04], &MOV_RAX_RDI, &[PUSH_RBX, RET]]);
        let site = choose_in(&function, Contract::FREE);
        let push = test.len() as u64 + 5;
        assert_eq!(site, Site::new(push, Why::MovedPastNull(Emulated::Push)));
    }
}

#[test]
fn the_flags_of_the_null_test_survive_a_mov_but_not_an_add() {
    let exit = [0x74, 0x02];
    let function = code(&[&TEST_RDI_RDI, &MOV_RAX_RDI, &exit, &[PUSH_RBX, RET, RET]]);
    let site = choose_in(&function, Contract::FREE);
    assert_eq!(site, Site::new(8, Why::MovedPastNull(Emulated::Push)));

    let add_rax = [0x48, 0x83, 0xc0, 0x01];
    let function = code(&[&TEST_RDI_RDI, &add_rax, &exit, &[PUSH_RBX, RET, RET]]);
    let site = choose_in(&function, Contract::FREE);
    assert_eq!(site, moved(7, Emulated::ConditionalJump));
}

#[test]
fn the_exit_for_null_serves_where_nothing_behind_it_does() {
    let clobber = [0x31, 0xff]; // xor edi, edi
    let function = code(&[&TEST_RDI_RDI, &[0x74, 0x03], &clobber, &[PUSH_RBX, RET]]);
    let site = choose_in(&function, Contract::FREE);
    assert_eq!(site, moved(3, Emulated::ConditionalJump));
}

#[test]
fn an_exit_on_any_other_condition_is_where_the_probe_stays() {
    let exits: [(&[u8], &[u8]); 5] = [
        (&TEST_RDI_RDI, &[0x75, 0x02]), // jne: leaves for what is not NULL
        (&TEST_RDI_RDI, &[0x78, 0x02]), // js
        (&[0x48, 0x85, 0xf6], &[0x74, 0x02]), // test rsi, rsi
        (&[0x85, 0xff], &[0x74, 0x02]), // test edi, edi: half of the pointer
        (&[0x48, 0x83, 0xff, 0x01], &[0x74, 0x02]), // cmp rdi, 1
    ];
    for (test, exit) in exits {
        let function = code(&[test, exit, &[PUSH_RBX, RET, RET]]);
        let site = choose_in(&function, Contract::FREE);
        let expected = moved(test.len() as u64, Emulated::ConditionalJump);
        assert_eq!(site, expected, "{test:x?} {exit:x?}");
    }
}

#[test]
fn only_a_free_may_be_left_for_null() {
    let function = code(&[&TEST_RDI_RDI, &[0x74, 0x02, PUSH_RBX, RET, RET]]);
    let site = choose_in(&function, Contract::reads(1));
    assert_eq!(site, moved(3, Emulated::ConditionalJump));
}

#[test]
fn a_second_exit_is_not_passed() {
    let exit = [0x74, 0x05];
    let function = code(&[
        &TEST_RDI_RDI,
        &exit,
        &TEST_RDI_RDI,
        &exit,
        &[PUSH_RBX, RET, RET, RET, RET, RET],
    ]);
    let site = choose_in(&function, Contract::FREE);
    assert_eq!(
        site,
        Site::new(8, Why::MovedPastNull(Emulated::ConditionalJump))
    );
}

#[test]
fn a_jump_back_onto_the_site_keeps_the_symbol() {
    // mov rax, rdi; push rbx; jne -3 (the push); ret
    let function = code(&[&MOV_RAX_RDI, &[PUSH_RBX, 0x75, 0xfd, RET]]);
    let site = choose_in(&function, Contract::UNKNOWN);
    assert_eq!(site, Site::kept(Obstacle::JumpBack(4)));
}

#[test]
fn a_jump_back_onto_what_was_skipped_keeps_the_symbol() {
    // endbr64; mov rax, rdi; push rbx; pop rbx; jmp to the mov
    let function = code(&[&ENDBR64, &MOV_RAX_RDI, &[PUSH_RBX, 0x5b, 0xeb, 0xf9]]);
    let site = choose_in(&function, Contract::UNKNOWN);
    assert_eq!(site, Site::kept(Obstacle::JumpBack(9)));
}

#[test]
fn a_call_of_the_site_keeps_the_symbol() {
    // mov rax, rdi; push rbx; call the push; ret
    let function = code(&[&MOV_RAX_RDI, &[PUSH_RBX, 0xe8, 0xfa, 0xff, 0xff, 0xff, RET]]);
    let site = choose_in(&function, Contract::UNKNOWN);
    assert_eq!(site, Site::kept(Obstacle::JumpBack(4)));
}

#[test]
fn jumps_to_the_symbol_or_behind_the_site_do_no_harm() {
    // mov rax, rdi; push rbx; jne behind the push; jmp to the symbol
    let function = code(&[&MOV_RAX_RDI, &[PUSH_RBX, 0x75, 0xfe, 0xeb, 0xf8]]);
    let site = choose_in(&function, Contract::UNKNOWN);
    assert_eq!(site, moved(3, Emulated::Push));
}

#[test]
fn a_computed_jump_keeps_the_symbol_but_a_tail_call_through_a_slot_does_not() {
    let computed: [&[u8]; 3] = [
        &[0xff, 0xe0],       // jmp rax
        &[0xff, 0x24, 0xc6], // jmp [rsi + rax*8]
        &[0x3e, 0xff, 0xe0], // notrack jmp rax
    ];
    for jump in computed {
        let function = code(&[&ENDBR64, &[PUSH_RBX, 0x5b], jump]);
        let site = choose_in(&function, Contract::UNKNOWN);
        assert_eq!(site, Site::kept(Obstacle::ComputedJump(6)), "{jump:x?}");
    }
    let function = code(&[&ENDBR64, &[PUSH_RBX, 0x5b, 0xff, 0x25, 0, 0, 0, 0]]);
    let site = choose_in(&function, Contract::UNKNOWN);
    assert_eq!(site, moved(4, Emulated::Push));
}

#[test]
fn a_first_instruction_that_is_emulated_survives_computed_jumps() {
    let site = choose_in(&[PUSH_RBX, 0xff, 0xe0], Contract::UNKNOWN);
    assert_eq!(site, Site::new(0, Why::First(Emulated::Push)));
}

#[test]
fn what_may_leave_the_straight_line_keeps_the_symbol() {
    let leavers: [(&[u8], &str); 7] = [
        (&[RET], "ret"),
        (&[0x0f, 0x05], "syscall"),
        (&[0xff, 0xd0], "call"), // call rax
        (&[0xe8, 0, 0, 0, 0], "call"),
        (&[0x0f, 0x0b], "ud2"),
        (&[0xcc], "int3"),
        (&[0xe3, 0x00], "jrcxz"), // a conditional jump which is not emulated
    ];
    for (leaver, name) in leavers {
        let function = code(&[&MOV_RAX_RDI, leaver, &[PUSH_RBX, RET]]);
        assert_eq!(
            choose_in(&function, Contract::UNKNOWN),
            leaves(name),
            "{leaver:x?}"
        );
    }
}

#[test]
fn padding_behind_a_function_is_not_part_of_it() {
    let function = code(&[&MOV_RAX_RDI, &[RET], &[0x90; 12]]);
    assert_eq!(choose_in(&function, Contract::UNKNOWN), leaves("ret"));
}

#[test]
fn the_search_ends_with_the_function() {
    let obstacle = Site::kept(Obstacle::EndOfFunction);
    assert_eq!(choose_in(&MOV_RAX_RDI, Contract::UNKNOWN), obstacle);
    assert_eq!(choose_in(&[], Contract::UNKNOWN), obstacle);
    assert_eq!(choose_in(&TEST_RDI_RDI, Contract::FREE), obstacle);
}

#[test]
fn truncated_bytes_keep_the_symbol() {
    let whole = code(&[&ENDBR64, &MOV_RAX_RDI, &[PUSH_RBX], &MOV_RAX_RDI]);
    let sites: Vec<u64> = (0..=whole.len())
        .map(|length| choose_in(&whole[..length], Contract::UNKNOWN).offset)
        .collect();
    // Complete with the push at 7 and with the mov behind it; in between an instruction is cut.
    assert_eq!(sites, [0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 7]);
}

#[test]
fn bytes_that_are_no_instruction_keep_the_symbol() {
    let invalid = 0x06; // push es, which 64-bit code does not have
    let function = code(&[&ENDBR64, &[PUSH_RBX, invalid, RET]]);
    let site = choose_in(&function, Contract::UNKNOWN);
    assert_eq!(site, Site::kept(Obstacle::Undecodable(5)));
}

/// Whatever the bytes are, the site is an instruction boundary in them, and nothing panics.
#[test]
fn a_branch_from_outside_the_function_is_found() {
    let function = code(&[&ENDBR64, &[PUSH_RBX, 0x5b, RET]]);
    let branches: [(&[u8], u8); 4] = [(&[0xe9], 4), (&[0xe8], 4), (&[0x0f, 0x85], 4), (&[0xeb], 1)];
    for (opcode, width) in branches {
        for target in 0..8_i32 {
            // The branch stands before the function; its distance counts from its end.
            let distance = &(8 + target).to_le_bytes()[..usize::from(width)];
            let segment = code(&[
                &[RET; 100],
                opcode,
                distance,
                &[RET; 8],
                &function,
                &[RET; 9],
            ]);
            let begin = 100 + opcode.len() + usize::from(width) + 8;
            let found = branches::from_outside(&segment, begin, function.len(), 4);
            let expected = (1..=4).contains(&target).then_some(100 - begin as i64);
            assert_eq!(found, expected, "{opcode:x?} to {target}");

            let distance =
                -(function.len() as i32 - target + 9 + opcode.len() as i32 + i32::from(width));
            let distance = &distance.to_le_bytes()[..usize::from(width)];
            let segment = code(&[&[RET; 5], &function, &[RET; 9], opcode, distance]);
            let found = branches::from_outside(&segment, 5, function.len(), 4);
            let expected = (1..=4)
                .contains(&target)
                .then_some(function.len() as i64 + 9);
            assert_eq!(found, expected, "{opcode:x?} back to {target}");
        }
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..20_000 {
        let bytes: Vec<u8> = (0..round % 48)
            .map(|_| {
                // xorshift64: the same bytes on every run
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3]
            })
            .collect();
        for contract in [Contract::UNKNOWN, Contract::FREE, Contract::reads(0)] {
            let site = choose_in(&bytes, contract);
            let boundary = instructions(&bytes)
                .into_iter()
                .any(|i| i.ip() == site.offset);
            assert!(boundary || site.offset == 0, "{bytes:x?}: {site:?}");
            assert!(!site.to_string().is_empty());
        }
    }
}

#[test]
fn a_site_explains_itself() {
    let function = code(&[&TEST_RDI_RDI, &[0x74, 0x02, PUSH_RBX, RET, RET]]);
    assert_eq!(
        choose_in(&function, Contract::FREE).to_string(),
        "at +5: the earliest emulated instruction behind the exit for NULL, a push"
    );
    assert_eq!(
        choose_in(&[0x31, 0xff, RET], Contract::FREE).to_string(),
        "at the symbol: `xor` changes an argument or the stack before any emulated instruction"
    );
}
