use super::*;
use crate::rng::Stream;

const SIZE: u32 = 4_096;

fn file(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect()
}

/// What an honest parent that cuts into `size` says.
fn held(bytes: &[u8], size: u32, index: u32) -> BaseFile {
    let data = bytes.chunks(size as usize).nth(index as usize).unwrap().to_vec();
    let chunk = Some(BaseChunk { index, chunk_bytes: size, data });
    BaseFile { sha256: Digest::of(bytes), chunk }
}

fn begin(bytes: &[u8], have: usize) -> BaseFetch {
    BaseFetch::new(Digest::of(bytes), bytes.len() as u64, have as u64)
}

/// Does to a disk what a step says.
fn write(disk: &mut Vec<u8>, step: &Step) {
    if let Some(keep) = step.keep {
        disk.truncate(usize::try_from(keep).unwrap());
    }
    step.append.iter().for_each(|data| disk.extend(data));
}

/// Fetches over a wire that loses, repeats and shuffles.
fn over_a_bad_wire(bytes: &[u8], disk: &mut Vec<u8>, stream: &mut Stream) {
    let mut fetch = begin(bytes, disk.len());
    let mut wire = fetch.ask(Mono(0));
    let mut now = 0;
    while !fetch.is_complete() {
        assert!(now < 10_000_000, "does not end");
        if wire.is_empty() {
            now += 500;
            wire = fetch.overdue(Mono(now));
            continue;
        }
        let at = stream.below(wire.len());
        let index = if stream.below(4) == 0 { wire[at] } else { wire.swap_remove(at) };
        if stream.below(4) == 0 {
            continue;
        }
        // A repeat of the last one may come when all is done.
        let Ok(step) = fetch.take(Mono(now), held(bytes, SIZE, index)) else { continue };
        write(disk, &step);
        assert_eq!(disk.len() as u64, fetch.have());
        assert!(fetch.held_bytes() <= (BaseFetch::WINDOW * SIZE) as usize);
        assert!(step.ask.len() <= Wanted::MAX_CHUNKS);
        wire.extend(step.ask);
    }
}

#[test]
fn a_file_comes_whole_whatever_is_lost_repeated_or_out_of_order() {
    for seed in 0..40 {
        let mut stream = Stream::new(seed, "base");
        let bytes = file(40 * SIZE as usize + stream.below(2 * SIZE as usize) + 1);
        let mut disk = Vec::new();
        over_a_bad_wire(&bytes, &mut disk, &mut stream);
        assert_eq!(disk, bytes, "seed {seed}");
    }
}

#[test]
fn a_start_at_any_length_asks_for_the_first_chunk_and_those_that_are_missing_only() {
    let bytes = file(24 * SIZE as usize + 7);
    for have in (0..=bytes.len()).step_by(1_111).chain([bytes.len()]) {
        // The rest of a chunk that was being written is rubbish.
        let whole = have - have % SIZE as usize;
        let mut disk = [&bytes[..whole], &vec![0xee; have - whole]].concat();
        if have == bytes.len() {
            disk.clone_from(&bytes);
        }
        let mut fetch = begin(&bytes, disk.len());
        let (mut ask, mut asked) = (fetch.ask(Mono(0)), Vec::new());
        while let Some(index) = ask.first().copied() {
            ask.remove(0);
            asked.push(index);
            let step = fetch.take(Mono(1), held(&bytes, SIZE, index)).unwrap();
            write(&mut disk, &step);
            ask.extend(step.ask);
        }
        assert_eq!(disk, bytes, "{have}");
        let first = u32::try_from(whole).unwrap() / SIZE;
        let mut wanted: Vec<u32> = (first..25).collect();
        if first > 0 {
            wanted.insert(0, 0); // how the file is cut
        }
        let wanted = if have == bytes.len() { Vec::new() } else { wanted };
        assert_eq!(asked, wanted, "{have}");
    }
}

#[test]
fn no_more_than_a_window_waits_for_a_chunk_that_does_not_come() {
    let bytes = file(100 * SIZE as usize);
    let mut fetch = begin(&bytes, 0);
    fetch.ask(Mono(0));
    let mut wire = fetch.take(Mono(0), held(&bytes, SIZE, 0)).unwrap().ask;
    let mut most = 0;
    while let Some(index) = wire.pop() {
        if index != 1 {
            wire.extend(fetch.take(Mono(0), held(&bytes, SIZE, index)).unwrap().ask);
        }
        most = most.max(fetch.held_bytes());
    }
    assert_eq!(fetch.have(), u64::from(SIZE));
    assert_eq!(most, (BaseFetch::WINDOW as usize - 1) * SIZE as usize);
    assert_eq!(fetch.overdue(Mono(2_000)), [1]);
    let step = fetch.take(Mono(2_000), held(&bytes, SIZE, 1)).unwrap();
    assert_eq!((step.append.len(), fetch.held_bytes()), (16, 0));
}

type Change = fn(&mut BaseFile, &mut BaseChunk);

#[test]
fn chunks_that_lie_are_refused_by_their_word_and_the_true_one_is_taken() {
    let bytes = file(20 * SIZE as usize + 7);
    let mut fetch = begin(&bytes, 0);
    fetch.ask(Mono(0));
    let changed = |index, change: Change| {
        let mut file = held(&bytes, SIZE, index);
        let mut chunk = file.chunk.take().unwrap();
        change(&mut file, &mut chunk);
        file.chunk = Some(chunk);
        file
    };
    let early = fetch.take(Mono(0), held(&bytes, SIZE, 1));
    assert_eq!(early, Err("base_chunk_not_asked_for"));
    let cases: [(Change, &str); 8] = [
        (|file, _| file.sha256 = Digest([1; 32]), "base_not_asked_for"),
        (|_, chunk| chunk.chunk_bytes = 0, "base_chunk_size"),
        (|_, chunk| chunk.chunk_bytes = 1 << 30, "base_chunk_size"),
        (|_, chunk| chunk.data.truncate(9), "base_chunk_length"),
        (|_, chunk| chunk.data.push(0), "base_chunk_length"),
        (|_, chunk| chunk.data.clear(), "base_chunk_length"),
        (|_, chunk| chunk.index = u32::MAX, "base_chunk_out_of_range"),
        (|_, chunk| chunk.index = 21, "base_chunk_out_of_range"),
    ];
    for (change, word) in cases {
        assert_eq!(fetch.take(Mono(0), changed(0, change)), Err(word));
        assert_eq!(fetch.have(), 0);
    }
    let first = fetch.take(Mono(0), held(&bytes, SIZE, 0)).unwrap();
    assert_eq!((first.append.len(), first.ask), (1, (1..9).collect()));
    assert_eq!(fetch.take(Mono(0), held(&bytes, SIZE, 9)), Err("base_chunk_not_asked_for"));
    assert_eq!(fetch.take(Mono(0), held(&bytes, 8_192, 1)), Err("base_chunk_size"));
    assert_eq!(fetch.take(Mono(0), held(&bytes, SIZE, 1)).unwrap().append.len(), 1);
    assert_eq!(fetch.take(Mono(0), held(&bytes, SIZE, 1)), Ok(Step::default()), "a repeat");
}

#[test]
fn a_parent_that_cuts_anew_is_asked_how_and_what_is_on_disk_stays() {
    let bytes = file(40 * SIZE as usize);
    let mut fetch = begin(&bytes, 0);
    fetch.ask(Mono(0));
    fetch.take(Mono(0), held(&bytes, SIZE, 0)).unwrap();
    for index in 1..6 {
        fetch.take(Mono(0), held(&bytes, SIZE, index)).unwrap();
    }
    let mut asked = Vec::new();
    for now in (0..40_000).step_by(250) {
        asked.extend(fetch.overdue(Mono(now)));
        let refused = fetch.take(Mono(now), held(&bytes, 10_000, 6));
        assert!(refused.is_err());
    }
    assert_eq!(asked.last(), Some(&0));
    let step = fetch.take(Mono(40_000), held(&bytes, 10_000, 0)).unwrap();
    // 24 576 bytes were on disk: two whole chunks of the new size.
    assert_eq!((step.keep, step.ask), (Some(20_000), (2..10).collect()));
}

#[test]
fn a_parent_without_the_file_is_asked_every_half_minute_and_one_that_is_silent_is_told() {
    let bytes = file(10);
    let mut fetch = begin(&bytes, 0);
    fetch.ask(Mono(0));
    let absent = BaseFile { sha256: Digest::of(&bytes), chunk: None };
    assert_eq!(fetch.take(Mono(0), absent), Ok(Step::default()));
    assert_eq!(fetch.giving(), Giving::Absent);
    assert!(fetch.overdue(Mono(29_999)).is_empty());
    assert_eq!(fetch.overdue(Mono(30_000)), [0]);
    let step = fetch.take(Mono(30_001), held(&bytes, SIZE, 0)).unwrap();
    assert_eq!((step.append, fetch.giving()), (vec![bytes.clone()], Giving::Chunks));
    assert!(fetch.is_complete() && fetch.overdue(Mono(u64::MAX)).is_empty());

    let mut fetch = begin(&bytes, 0);
    fetch.ask(Mono(0));
    let asked: Vec<u64> =
        (0..100_000).step_by(250).filter(|t| !fetch.overdue(Mono(*t)).is_empty()).collect();
    assert_eq!(asked, [2_000, 6_000, 14_000, 30_000, 60_000, 90_000]);
    assert_eq!(fetch.giving(), Giving::Nothing);
}
