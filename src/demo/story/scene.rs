//! Where the story takes place: the processes, the listener, an operator; and waiting, with a bound, for what is to come.

use std::time::Duration;

use indicatif::ProgressBar;
use tokio::process::Command;

use super::super::brokers::Brokers;
use super::super::children::Children;
use super::super::heard::Counts;
use super::super::listener::Listener;
use super::super::plant::{self, PLACES, Place};
use super::super::run::{Interrupt, say};
use super::super::{DemoError, DemoOptions};
use super::plan::MODEL;
use super::wire::{Reply, Wire};
use crate::node::SystemClock;
use crate::time::Clock;

/// See the module.
pub(super) struct Scene<'a> {
    pub(super) options: &'a DemoOptions,
    pub(super) brokers: &'a Brokers,
    pub(super) clock: &'a SystemClock,
    pub(super) children: &'a mut Children,
    pub(super) interrupt: &'a mut Interrupt,
    pub(super) listener: Listener,
    pub(super) wire: Wire,
    pub(super) bar: ProgressBar,
}

/// A command that was signed, and not given yet.
pub(super) struct Signed {
    place: &'static Place,
    command: String,
    topic: String,
    bytes: Vec<u8>,
}

/// What is asked again and again while something is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    pub(super) place: &'static Place,
    pub(super) command: &'static str,
    /// How often, in seconds.
    pub(super) every_s: u64,
}

impl Scene<'_> {
    /// Waits until what was heard has something; meanwhile it asks.
    ///
    /// # Errors
    /// [`DemoError::Late`] when that takes longer than the user's patience.
    pub(super) async fn until<T>(
        &mut self,
        what: &str,
        asks: &[Ask],
        mut found: impl FnMut(&Wire) -> Option<T>,
    ) -> Result<T, DemoError> {
        self.bar.set_message(what.to_owned());
        for ask in asks {
            self.wire.forget_reply(ask.place.name, ask.command);
        }
        let began = self.clock.now();
        let (mut ticks, mut seconds) = (tokio::time::interval(TICK), 0_u64);
        loop {
            if let Some(found) = found(&self.wire) {
                return Ok(found);
            }
            tokio::select! {
                biased;
                () = self.interrupt.asked() => return Err(DemoError::StoryStopped),
                _ = ticks.tick() => {
                    for news in self.children.tend()? {
                        self.tell(&news);
                    }
                    seconds += 1;
                    for ask in asks.iter().filter(|ask| seconds.is_multiple_of(ask.every_s)) {
                        self.ask(*ask)?;
                    }
                    self.bar.tick();
                    let waited_ms = self.clock.now().mono.0.saturating_sub(began.mono.0);
                    if waited_ms > self.options.patience_s.saturating_mul(1_000) {
                        return Err(self.late(what, asks));
                    }
                }
                heard = self.listener.next() => {
                    let heard = heard?;
                    let (message, at) = (heard.delivery, self.clock.now().micros);
                    self.wire.hear(at, heard.site, &message.topic, &message.payload, message.retained);
                    message.ack.release();
                }
            }
        }
    }

    /// Tells the user something.
    pub(super) fn tell(&self, text: &str) {
        self.bar.suspend(|| say(self.options, text));
    }

    /// Signs a command with the operator's key, by the very program that a person would call, and tells how to give it by
    /// hand.
    ///
    /// # Errors
    /// [`DemoError::Refused`] with what the program says.
    pub(super) async fn sign(
        &self,
        place: &'static Place,
        command: &str,
        words: &[&str],
    ) -> Result<Signed, DemoError> {
        let folder = &self.options.folder;
        let operator = self.options.story.map_or("", super::super::Story::operator);
        let key = plant::key_folder(folder, operator).join("node.pem").display().to_string();
        let keyring = folder.join("keyring").display().to_string();
        let to = format!("{}/{}/{}", place.site, place.line, place.name);
        let args =
            [words, &["--to", to.as_str(), "--key", key.as_str(), "--keyring", keyring.as_str()]]
                .concat();
        let signed = Command::new(&self.options.program).args(&args).output().await;
        let signed = signed.map_err(DemoError::file(&self.options.program))?;
        let said = String::from_utf8_lossy(&signed.stderr);
        let topic = said.lines().last().unwrap_or_default().to_owned();
        if !signed.status.success() {
            let problem = format!("{said}{}", String::from_utf8_lossy(&signed.stdout));
            let (node, command) = (place.name.to_owned(), command.to_owned());
            return Err(DemoError::Refused { node, command, problem: problem.trim().to_owned() });
        }
        if let Some(broker) = self.brokers.get(place.site) {
            let line: Vec<String> = args.iter().map(|word| shell_word(word)).collect();
            self.tell(&format!(
                "  $ gaisnet {} 2> topic | {} -s -t \"$(cat topic)\"",
                line.join(" "),
                broker.mosquitto_pub("demo")
            ));
        }
        Ok(Signed { place, command: command.to_owned(), topic, bytes: signed.stdout })
    }

    /// Gives a signed command; the moment.
    pub(super) fn give(&mut self, signed: Signed) -> Result<u64, DemoError> {
        let Signed { place, command, topic, bytes } = signed;
        self.wire.forget_reply(place.name, &command);
        self.listener.say(place.site, topic, bytes).map_err(|error| DemoError::start(&error))?;
        Ok(self.clock.now().micros)
    }

    /// Signs a command, gives it, and waits for the reply.
    pub(super) async fn order(
        &mut self,
        place: &'static Place,
        command: &str,
        words: &[&str],
    ) -> Result<Reply, DemoError> {
        let signed = self.sign(place, command, words).await?;
        self.give(signed)?;
        self.reply_of(place, command).await
    }

    /// Waits for a node's reply to a command.
    pub(super) async fn reply_of(
        &mut self,
        place: &'static Place,
        command: &str,
    ) -> Result<Reply, DemoError> {
        let what = format!("the reply of {} to {command}", place.name);
        self.until(&what, &[], |wire| wire.reply(place.name, command).cloned()).await
    }

    /// Gives a command that needs no signature, and tells how to give it by hand.
    pub(super) fn ask_once(&self, ask: Ask) -> Result<(), DemoError> {
        if let Some(broker) = self.brokers.get(ask.place.site) {
            let pipe = broker.mosquitto_pub("demo");
            self.tell(&format!("  $ {pipe} -t {} -m '{}'", ask.topic(), ask.json()));
        }
        self.ask(ask)
    }

    fn ask(&self, ask: Ask) -> Result<(), DemoError> {
        let said = self.listener.say(ask.place.site, ask.topic(), ask.json().into_bytes());
        said.map_err(|error| DemoError::start(&error))
    }

    fn late(&self, what: &str, asks: &[Ask]) -> DemoError {
        let silent = PLACES.iter().find(|place| !self.wire.counts.is_online(place.name));
        let hint = match (silent, asks.first()) {
            (Some(place), _) => Counts::silence_of(place),
            (None, Some(Ask { place, command, .. })) => {
                let said = self.wire.reply(place.name, command).map(|reply| reply.said.to_string());
                let said = said.unwrap_or_else(|| "nothing".to_owned());
                format!("{} said last on {command}: {said}", place.name)
            }
            (None, None) => {
                format!("the nodes' logs are {}/NODE/log.txt", self.options.folder.display())
            }
        };
        DemoError::Late { what: what.to_owned(), seconds: self.options.patience_s, hint }
    }
}

impl Ask {
    fn topic(self) -> String {
        format!("{}/cmd/{}", self.place.branch(), self.command)
    }

    fn json(self) -> String {
        match self.command {
            "rollout.status" => format!("{{\"args\":{{\"model\":\"{MODEL}\"}}}}"),
            _ => "{}".to_owned(),
        }
    }
}

/// A word as a shell takes it.
fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

const TICK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_what_a_shell_would_run() {
        assert_eq!(shell_word("north/_/edge-north"), "north/_/edge-north");
        assert_eq!(shell_word(r#"{"args":{}}"#), r#"'{"args":{}}'"#);
        assert_eq!(shell_word("it's"), r"'it'\''s'");
    }
}
