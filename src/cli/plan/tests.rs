use serde_json::Value;

use super::super::tests::gaisnet;
use super::*;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// Settings of press-7, and figures.
    fn new(figures: &str) -> Self {
        let this = Self { folder: tempfile::tempdir().unwrap() };
        let base = concat!(env!("CARGO_MANIFEST_DIR"), "/models/signal-bearing.toml");
        let settings = format!(
            "[node]\nname = \"press-7\"\nsite = \"north\"\nline = \"l\"\nparent = \"edge-north\"\nroles = [\"trainer\", \"inferencer\"]\n\
             [model]\nlearner = \"signal-transformer\"\nbase = \"{base}\"\n"
        );
        std::fs::write(this.path("press-7.toml"), settings).unwrap();
        std::fs::write(this.path("figures.toml"), figures).unwrap();
        this
    }

    /// The same with more settings.
    fn and(self, more: &str) -> Self {
        let path = self.path("press-7.toml");
        let settings = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, settings + more).unwrap();
        self
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn plan(&self, more: &[&str]) -> (anyhow::Result<Exit>, String) {
        let (settings, members) = (self.path("press-7.toml"), self.path("figures.toml"));
        gaisnet(&[&["plan", "--settings", &settings, "--members", &members], more].concat())
    }

    fn json(&self, more: &[&str]) -> Value {
        let (exit, text) = self.plan(&[&["--json"], more].concat());
        exit.unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

fn entry(name: &str, gflops: &str, mib: u32, kbps: &str, more: &str) -> String {
    format!(
        "[[members]]\nname = \"{name}\"\ngflops = {gflops}\nfree_memory_mib = {mib}\nuplink_kbps = {kbps}\nexamples = 900\n{more}\n"
    )
}

#[test]
fn each_member_gets_what_fits_it_and_is_told_why() {
    let figures = [
        entry("press-7", "20", 2_000, "8000", ""),
        entry("small", "20", 182, "8000", "edge = \"edge-east\""),
        entry("slow", "20", 2_000, "0.05", "edge = \"edge-west\""),
        entry("people", "20", 182, "8000", "profile = \"strict\"\nedge = \"edge-east\""),
    ];
    let place = Place::new(&figures.concat());
    let (exit, text) = place.plan(&[]);
    assert_eq!(exit.unwrap(), Exit::Ok);
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(line("press-7").contains("whole adapter"), "{text}");
    assert!(line("small").contains("split, cut "), "{text}");
    assert!(line("slow").contains("mean logits a class"), "{text}");
    assert!(text.contains("its profile keeps activations on the device"), "{text}");
    assert!(text.contains("not whole adapter: takes ") && text.contains("182 are free"), "{text}");
    let json = place.json(&[]);
    let ways: Vec<&Value> = json["members"].as_array().unwrap().iter().map(|m| &m["way"]).collect();
    assert_eq!(ways[0], "whole");
    let small = json["members"].as_array().unwrap().iter().find(|m| m["name"] == "small").unwrap();
    assert_eq!((&small["way"], &small["answered_by"]), (&"split".into(), &"halves".into()));
    assert!(small["cost"]["memory_bytes"].as_u64().unwrap() <= 182 << 20);
    assert!(!small["considered"][0]["against"].as_array().unwrap().is_empty());
}

#[test]
fn rounds_are_of_one_kind_and_that_of_most_members_stands_first() {
    let figures = [
        entry("press-7", "20", 2_000, "8000", ""),
        entry("slow", "20", 2_000, "0.05", "edge = \"edge-west\""),
        entry("slower", "20", 2_000, "0.05", "edge = \"edge-west\""),
    ];
    let place = Place::new(&figures.concat());
    let (_, text) = place.plan(&[]);
    let told: Vec<&str> = text.lines().rev().take(2).collect();
    assert_eq!(
        told,
        [
            "  adapters, whole or split: press-7; without slow, slower",
            "  mean logits a class: press-7, slow, slower"
        ]
    );
    let rounds = &place.json(&[])["rounds"];
    assert_eq!(
        (&rounds[0]["kind"], &rounds[1]["kind"]),
        (&"class_logits".into(), &"adapters".into())
    );
    assert_eq!(rounds[1]["without"], serde_json::json!(["slow", "slower"]));
}

#[test]
fn labels_that_stay_and_examples_that_are_kept_back_are_looked_at() {
    let figures = entry("press-7", "20", 182, "8000", "");
    let member = |more: &str| Place::new(&figures).and(more).json(&[])["members"][0].clone();
    let (there, here) = (member(""), member("[split]\nlabels = \"device\"\n"));
    assert_eq!((&there["way"], &there["answered_by"]), (&"split".into(), &"halves".into()));
    assert_eq!((&here["way"], &here["answered_by"]), (&"split".into(), &"edge".into()));
    let kept = member("[cascade]\nenabled = true\nholdout = 0.2\n[privacy]\nrisk_meter = true\n");
    let figures = &kept["figures"];
    assert_eq!((&figures["examples"], &figures["kept_back"]), (&576.into(), &324.into()));
    assert_eq!(there["figures"]["kept_back"], 0);
}

#[test]
fn one_edge_has_one_cut() {
    let figures =
        [entry("press-7", "20", 2_000, "8000", ""), entry("press-8", "20", 182, "8000", "")];
    let json = Place::new(&figures.concat()).json(&[]);
    let whole = &json["members"][0];
    assert_eq!(
        (&whole["way"], &whole["shared_cut"]),
        (&"whole".into(), &json["members"][1]["cut"])
    );
    let told = whole["reasons"].to_string();
    assert!(told.contains("edge-north") && told.contains("an edge of its own"), "{told}");
}

#[test]
fn this_machine_can_be_measured() {
    let place = Place::new("members = []");
    let more = ["--measure", "--uplink-kbps", "8000", "--examples", "900"];
    let json = place.json(&more);
    let figures = &json["members"][0]["figures"];
    assert!(figures["flops_per_s"].as_f64().unwrap() > 1e6, "{json}");
    assert!(figures["free_bytes"].as_u64().unwrap() > 1 << 20, "{json}");
}

#[test]
fn what_is_missing_or_wrong_is_said_with_the_way_out() {
    let error = |figures: &str, more: &[&str]| {
        let error = Place::new(figures).plan(more).0.unwrap_err();
        (error.is::<Misuse>(), format!("{error:#}"))
    };
    let (misuse, text) = error("members = []", &[]);
    assert!(
        misuse && text.contains("nothing is known of press-7") && text.contains("--measure"),
        "{text}"
    );
    let bare = "[[members]]\nname = \"press-7\"\ngflops = 2\nfree_memory_mib = 256";
    let (misuse, text) = error(bare, &["--examples", "9"]);
    assert!(misuse && text.contains("uplink_kbps") && text.contains("--uplink-kbps"), "{text}");
    let (misuse, text) = error(bare, &["--uplink-kbps", "9"]);
    assert!(misuse && text.contains("--examples"), "{text}");
    let good = entry("press-7", "20", 200, "8000", "");
    for bad in ["NaN", "0", "-3", "inf"] {
        let (misuse, text) = error(&good, &[&format!("--budget-s={bad}")]);
        assert!(misuse && text.contains("seconds of a round"), "{text}");
        let (misuse, text) =
            error(&format!("{bare}\nexamples = 9"), &[&format!("--uplink-kbps={bad}")]);
        assert!(misuse && text.contains("uplink"), "{text}");
    }
    let (exit, _) = gaisnet(&["plan", "--uplink-kbps", "9"]);
    assert!(exit.unwrap_err().to_string().contains("--settings FILE"));
    let place = Place::new(&good);
    let settings = place.path("press-7.toml");
    let text = std::fs::read_to_string(&settings).unwrap();
    let with = |from: &str, to: &str| {
        std::fs::write(&settings, text.replace(from, to)).unwrap();
        format!("{:#}", place.plan(&[]).0.unwrap_err())
    };
    assert!(with("signal-bearing.toml", "no-such.toml").contains("model.base"));
    assert!(with("signal-bearing.toml", "minilm-l6.toml").contains("another kind of model"));
    let softmax = with("learner = \"signal-transformer\"", "learner = \"softmax\"");
    assert!(softmax.contains("model.learner"), "{softmax}");
}

#[test]
fn a_member_that_nobody_can_help_ends_with_a_no() {
    let tiny = entry("press-7", "20", 1, "8000", "edge = \"\"");
    let (exit, text) = Place::new(&tiny).plan(&[]);
    assert_eq!(exit.unwrap(), Exit::Refused);
    assert!(text.contains("no edge is there"), "{text}");
}
