//! Fetching from a folder and from a small server that can break off.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::ids::Digest;

const LENGTH: usize = 9 << 20; // three pieces

fn bytes() -> Vec<u8> {
    (0..LENGTH).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect()
}

fn pin(bytes: &[u8]) -> FilePin {
    FilePin {
        name: "a.gguf".into(),
        path: Some("sub/a.gguf".into()),
        sha256: Digest::of(bytes),
        bytes: bytes.len() as u64,
    }
}

fn base<'a>(files: &'a [FilePin], papers: &'a [(String, Vec<u8>)]) -> BaseFiles<'a> {
    BaseFiles { name: "toy", folder: "toy-123", files, source: None, papers }
}

fn fetch(files: &[FilePin], from: &str, cache: &Cache) -> Result<(PathBuf, bool), DataError> {
    let papers = [("toy.toml".to_owned(), b"card".to_vec())];
    base(files, &papers).fetch(&Origin::of(from), cache, &mut |_| {})
}

/// Serves one file; gives the number of requests that it answered. It answers `good` of them and
/// breaks the others off in the middle of the body.
fn serve(body: Vec<u8>, good: usize, ranges: bool) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let answered = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&answered);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            let head: Vec<String> =
                lines.map(Result::unwrap).take_while(|l| !l.is_empty()).collect();
            let range = head.iter().find_map(|line| {
                line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned)
            });
            let (start, end) =
                match range.as_deref().filter(|_| ranges).and_then(|r| r.split_once('-')) {
                    Some((a, b)) => (a.parse().unwrap(), b.parse::<usize>().unwrap() + 1),
                    None => (0, body.len()),
                };
            let status = if !first.contains("/models/sub/a.gguf") {
                "404 Not Found".to_owned()
            } else if ranges && range.is_some() {
                format!(
                    "206 Partial Content\r\nContent-Range: bytes {start}-{}/{}",
                    end - 1,
                    body.len()
                )
            } else {
                "200 OK".to_owned()
            };
            let piece = if status.starts_with("404") { &[][..] } else { &body[start..end] };
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nConnection: close\r\n\r\n",
                piece.len()
            );
            let whole = count.fetch_add(1, Ordering::SeqCst) < good;
            let sent = if whole { piece } else { &piece[..piece.len() / 2] };
            // The client may be gone.
            let _ = stream.write_all(answer.as_bytes()).and_then(|()| stream.write_all(sent));
        }
    });
    (address, answered)
}

#[test]
fn files_are_copied_from_a_folder_checked_and_kept_with_their_papers() {
    let room = tempfile::tempdir().unwrap();
    let cache = Cache::at(room.path().join("cache"));
    fs::write(room.path().join("a.gguf"), bytes()).unwrap();
    let from = room.path().to_str().unwrap();
    let files = [pin(&bytes())];
    let (folder, fresh) = fetch(&files, from, &cache).unwrap();
    assert!(fresh);
    assert_eq!(fs::read(folder.join("a.gguf")).unwrap(), bytes());
    assert_eq!(fs::read(folder.join("toy.toml")).unwrap(), b"card");
    assert_eq!(fs::read_dir(cache.models()).unwrap().count(), 1, "the temporary folder is gone");
    assert_eq!(fetch(&files, "/nowhere", &cache).unwrap(), (folder.clone(), false));
    fs::write(folder.join("a.gguf"), b"short").unwrap();
    assert!(fetch(&files, from, &cache).unwrap().1, "a damaged base is fetched anew");
}

#[test]
fn a_wrong_file_leaves_no_base_behind() {
    let room = tempfile::tempdir().unwrap();
    let cache = Cache::at(room.path().join("cache"));
    let from = room.path().to_str().unwrap();
    let files = [pin(&bytes())];
    for (content, kind) in [(vec![0; LENGTH], "hash_mismatch"), (vec![0; 5], "wrong_size")] {
        fs::write(room.path().join("a.gguf"), content).unwrap();
        assert_eq!(fetch(&files, from, &cache).unwrap_err().kind(), kind);
        assert_eq!(fs::read_dir(cache.models()).unwrap().count(), 0);
    }
    assert_eq!(
        base(&files, &[]).fetch(&Origin::Card, &cache, &mut |_| {}).unwrap_err().kind(),
        "no_source"
    );
}

#[test]
fn a_download_that_broke_off_goes_on_where_it_stopped() {
    let room = tempfile::tempdir().unwrap();
    let cache = Cache::at(room.path());
    let files = [pin(&bytes())];
    let partial = cache.models().join("unfinished").join(files[0].sha256.to_string());
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    // Two of three pieces are there from an earlier try.
    fs::write(&partial, &bytes()[..8 << 20]).unwrap();
    let (server, answered) = serve(bytes(), usize::MAX, true);
    let (folder, _) = fetch(&files, &format!("{server}/models"), &cache).unwrap();
    assert_eq!(fs::read(folder.join("a.gguf")).unwrap(), bytes());
    assert_eq!(answered.load(Ordering::SeqCst), 1, "only the last piece was asked for");
    assert!(!partial.exists());
}

#[test]
fn a_server_that_knows_no_ranges_is_read_whole() {
    let room = tempfile::tempdir().unwrap();
    let cache = Cache::at(room.path());
    let files = [pin(&bytes())];
    let (server, _) = serve(bytes(), usize::MAX, false);
    let (folder, _) = fetch(&files, &format!("{server}/models/"), &cache).unwrap();
    assert_eq!(fs::read(folder.join("a.gguf")).unwrap(), bytes());
}

#[test]
fn what_came_with_a_wrong_digest_is_thrown_away_and_the_next_try_begins_anew() {
    let room = tempfile::tempdir().unwrap();
    let cache = Cache::at(room.path());
    let files = [pin(&bytes())];
    let (forger, _) = serve(vec![7; LENGTH], usize::MAX, true);
    let error = fetch(&files, &format!("{forger}/models"), &cache).unwrap_err();
    assert_eq!(error.kind(), "hash_mismatch");
    let (server, answered) = serve(bytes(), usize::MAX, true);
    assert!(fetch(&files, &format!("{server}/models"), &cache).is_ok());
    assert_eq!(answered.load(Ordering::SeqCst), 3);
}

#[test]
fn an_absent_file_and_an_unknown_scheme_are_told_apart() {
    let room = tempfile::tempdir().unwrap();
    let cache = Cache::at(room.path());
    let files = [pin(&bytes())];
    let (server, _) = serve(bytes(), usize::MAX, true);
    let error = fetch(&files, &format!("{server}/elsewhere"), &cache).unwrap_err();
    assert_eq!(error.kind(), "address");
    assert!(error.to_string().contains("0 of 9437184 bytes are kept"), "{error}");
    assert_eq!(fetch(&files, "ftp://host/x", &cache).unwrap_err().kind(), "bad_address");
    assert_eq!(fetch(&files, "gs://bucket/x", &cache).unwrap_err().kind(), "bad_address");
    let partial = cache.models().join("unfinished").join(files[0].sha256.to_string());
    let held = File::create(&partial).unwrap();
    held.lock().unwrap();
    let busy = fetch(&files, &format!("{server}/models"), &cache).unwrap_err();
    assert_eq!(busy.kind(), "busy");
}

#[test]
fn a_file_address_is_read_too() {
    let room = tempfile::tempdir().unwrap();
    let cache = Cache::at(room.path().join("cache"));
    fs::create_dir_all(room.path().join("sub")).unwrap();
    fs::write(room.path().join("sub/a.gguf"), bytes()).unwrap();
    let files = [pin(&bytes())];
    let address = format!("file://{}", room.path().display());
    assert!(fetch(&files, &address, &cache).is_ok());
}
