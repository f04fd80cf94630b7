//! From files to [`HostConfig`].

use std::path::Path;
use std::sync::Arc;

use crate::agent::Agent;
use crate::clh::CloudHypervisor;
use crate::error::{closest, invalid};
use crate::files::{Source, read_with_drop_ins};
use crate::firecracker::Firecracker;
use crate::hypervisors::{self, OTHER_HYPERVISORS, Visitor};
use crate::krun::Krun;
use crate::off::OffKey;
use crate::qemu::{FACTORY, Qemu};
use crate::runtime::Runtime;
use crate::section::Section;
use crate::setting::Input;
use crate::tree::{Entry, Table, Value};
use crate::{ConfigError, HypervisorName, Origin};

/// The whole configuration of the host's side.
#[derive(Debug, Clone, PartialEq)]
pub struct HostConfig {
    /// `[hypervisor.clh]`.
    pub clh: CloudHypervisor,
    /// `[hypervisor.firecracker]`.
    pub firecracker: Firecracker,
    /// `[hypervisor.krun]`.
    pub krun: Krun,
    /// `[hypervisor.qemu]`.
    pub qemu: Qemu,
    /// `[agent.kata]`.
    pub agent: Agent,
    /// `[runtime]`.
    pub runtime: Runtime,
}

impl HostConfig {
    /// The built-in defaults for an installation under `prefix`.
    #[must_use]
    pub fn defaults(prefix: &Path) -> Self {
        Self {
            clh: CloudHypervisor::defaults(prefix),
            firecracker: Firecracker::defaults(prefix),
            krun: Krun::defaults(prefix),
            qemu: Qemu::defaults(prefix),
            agent: Agent::defaults(prefix),
            runtime: Runtime::defaults(prefix),
        }
    }

    /// Loads `file` (as [`crate::locate`] found it) with its drop-ins over the defaults; without a
    /// file, the defaults.
    pub fn load(file: Option<&Path>, prefix: &Path) -> Result<Self, ConfigError> {
        match file {
            Some(file) => Self::from_sources(&read_with_drop_ins(file)?, prefix),
            None => Ok(Self::defaults(prefix)),
        }
    }

    /// Reads `text` as if it were the file `name`, without drop-ins.
    pub fn parse(text: &str, name: &Path, prefix: &Path) -> Result<Self, ConfigError> {
        let source = Source { file: Arc::new(name.to_path_buf()), text: text.to_owned() };
        Self::from_sources(&[source], prefix)
    }

    pub(crate) fn from_sources(sources: &[Source], prefix: &Path) -> Result<Self, ConfigError> {
        let mut root = Table::default();
        for source in sources {
            root.merge(Table::parse(&source.file, &source.text)?);
        }
        rename_old_keys(&mut root)?;
        let mut config = Self::defaults(prefix);
        let chosen = hypervisors::choice_of(&root)?;
        config.runtime.hypervisor_name = chosen;
        move_template_keys(&mut root, chosen)?;
        for entry in &root.entries {
            match entry.name.as_str() {
                "hypervisor" => config.apply_hypervisors(entry)?,
                "agent" => config.apply_agents(entry)?,
                "runtime" => apply(&mut config.runtime, entry)?,
                "factory" => check_off_table(entry, FACTORY)?,
                _ => return Err(unknown(entry, ["hypervisor", "agent", "runtime", "factory"])),
            }
        }
        config.check_combination(&root)?;
        Ok(config)
    }

    /// Keys of which each is right, but not all together: section, key, and a sentence.
    pub(crate) fn contradictions(
        &self,
    ) -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
        let of_vm = [
            ("clh", self.clh.vm.contradiction()),
            ("firecracker", self.firecracker.vm.contradiction()),
            ("krun", self.krun.vm.contradiction()),
            ("qemu", self.qemu.vm.contradiction().or_else(|| self.qemu.contradiction())),
        ];
        of_vm.into_iter().filter_map(|(name, found)| found.map(|(key, why)| (name, key, why)))
    }

    /// Refuses keys of which each is right, but not all together.
    fn check_combination(&self, root: &Table) -> Result<(), ConfigError> {
        if let Some((name, key, problem)) = self.contradictions().next() {
            let section = match root.get("hypervisor").map(|entry| &entry.value) {
                Some(Value::Table(hypervisors)) => find(hypervisors, name, key),
                _ => None,
            };
            let entry =
                section.expect("no default contradicts another, so the key was set in a file");
            return Err(invalid(entry, problem.to_owned()));
        }
        Ok(())
    }

    fn apply_hypervisors(&mut self, entry: &Entry) -> Result<(), ConfigError> {
        for section in &table_of(entry)?.entries {
            if let Some(name) = hypervisors::of_section(&section.name) {
                self.visit(name, Applied(section))?;
            } else if OTHER_HYPERVISORS.contains(&section.name.as_str()) {
                table_of(section)?;
            } else {
                return Err(unknown(
                    section,
                    OTHER_HYPERVISORS.iter().copied().chain(["clh", "firecracker", "krun", "qemu"]),
                ));
            }
        }
        Ok(())
    }

    fn apply_agents(&mut self, entry: &Entry) -> Result<(), ConfigError> {
        for section in &table_of(entry)?.entries {
            match section.name.as_str() {
                "kata" => apply(&mut self.agent, section)?,
                _ => return Err(unknown(section, ["kata"])),
            }
        }
        Ok(())
    }
}

struct Applied<'a>(&'a Entry);

impl Visitor for Applied<'_> {
    type Outcome = Result<(), ConfigError>;

    fn visit<S: Section>(self, section: &mut S) -> Self::Outcome {
        apply(section, self.0)
    }
}

/// Sets the keys of one section.
fn apply<S: Section>(section: &mut S, entry: &Entry) -> Result<(), ConfigError> {
    for key in &table_of(entry)?.entries {
        let name = key.name.as_str();
        let input = Input::File(&key.value);
        // First: a hypervisor may lack what a key of every hypervisor is for.
        if let Some(off) = S::OFF.iter().find(|off| off.name == name) {
            off.check(input).map_err(|problem| invalid(key, problem))?;
            continue;
        }
        if section.set(name, input).map_err(|problem| invalid(key, problem))? {
            continue;
        }
        if let Some((_, keys)) = S::OFF_TABLES.iter().find(|(table, _)| *table == name) {
            check_off_table(key, keys)?;
        } else {
            let known = section.keys().into_iter().map(|key| key.name);
            let off = S::OFF.iter().map(|off| off.name);
            let tables = S::OFF_TABLES.iter().map(|(table, _)| *table);
            return Err(unknown(key, known.chain(off).chain(tables)));
        }
    }
    Ok(())
}

/// Checks a table that only holds keys of missing features.
fn check_off_table(entry: &Entry, keys: &[OffKey]) -> Result<(), ConfigError> {
    for key in &table_of(entry)?.entries {
        let Some(off) = keys.iter().find(|off| off.name == key.name) else {
            return Err(unknown(key, keys.iter().map(|off| off.name)));
        };
        off.check(Input::File(&key.value)).map_err(|problem| invalid(key, problem))?;
    }
    Ok(())
}

/// Gives keys of the Go runtime the names and places that they have now. Their origins stay, so
/// errors name what is in the file.
fn rename_old_keys(root: &mut Table) -> Result<(), ConfigError> {
    if let Some(qemu) = root.table_mut("hypervisor").and_then(|table| table.table_mut("qemu"))
        && let Some(old) = qemu.take("seccompsandbox")
    {
        put(qemu, "seccomp_sandbox", old)?;
    }
    let timeout =
        root.table_mut("runtime").and_then(|runtime| runtime.take("create_container_timeout"));
    if let Some(timeout) = timeout {
        let agent = subtable(root, "agent", &timeout.origin)?;
        put(subtable(agent, "kata", &timeout.origin)?, "create_container_timeout", timeout)?;
    }
    if let Some(kata) = root.table_mut("agent").and_then(|table| table.table_mut("kata"))
        && let Some(mut old) = kata.take("dial_timeout")
    {
        // Seconds become milliseconds; what is no number is refused later, as what it is.
        if let Value::Integer(seconds) = old.value {
            old.value = Value::Integer(seconds.saturating_mul(1000));
        }
        put(kata, "reconnect_timeout_ms", old)?;
    }
    Ok(())
}

/// Templates are QEMU's. Kata's runtimes have their keys in two tables, of which one does not say
/// for which hypervisor it is.
fn move_template_keys(root: &mut Table, chosen: HypervisorName) -> Result<(), ConfigError> {
    const KEYS: [&str; 2] = ["enable_template", "template_path"];
    let is_qemu = matches!(chosen, HypervisorName::Auto | HypervisorName::Qemu);
    let mut moved = Vec::new();
    if let Some(factory) = root.table_mut("factory") {
        for key in KEYS.iter().filter_map(|name| factory.take(name)) {
            if !is_qemu && matches!(key.value, Value::Boolean(true)) {
                let problem =
                    "= true needs QEMU; set `hypervisor_name` to \"qemu\", or this to false";
                return Err(invalid(&key, problem.to_owned()));
            }
            moved.push(key);
        }
    }
    let qemu = root.table_mut("hypervisor").and_then(|table| table.table_mut("qemu"));
    if let Some(factory) = qemu.and_then(|qemu| qemu.table_mut("factory")) {
        moved.extend(KEYS.iter().filter_map(|name| factory.take(name)));
    }
    for key in moved {
        let (name, origin) = (key.name.clone(), key.origin.clone());
        let hypervisors = subtable(root, "hypervisor", &origin)?;
        put(subtable(hypervisors, "qemu", &origin)?, &name, key)?;
    }
    Ok(())
}

/// Puts `entry` into `table` under another name, unless that is there too.
fn put(table: &mut Table, name: &str, mut entry: Entry) -> Result<(), ConfigError> {
    if let Some(new) = table.get(name) {
        let problem = format!("is the older form of {}; keep one of the two", new.origin);
        return Err(invalid(&entry, problem));
    }
    name.clone_into(&mut entry.name);
    table.entries.push(entry);
    Ok(())
}

/// The table `name` in `table`, made where it is missing.
fn subtable<'a>(
    table: &'a mut Table,
    name: &str,
    origin: &Origin,
) -> Result<&'a mut Table, ConfigError> {
    if table.get(name).is_none() {
        let value = Value::Table(Table::default());
        table.entries.push(Entry { name: name.to_owned(), origin: origin.clone(), value });
    }
    if let Some(Entry { value, .. }) = table.get(name)
        && !matches!(value, Value::Table(_))
    {
        let problem = format!("must be a table, not {}", value.shown());
        return Err(ConfigError::Invalid { origin: origin.clone(), problem });
    }
    Ok(table.table_mut(name).expect("it was just made or checked to be a table"))
}

fn table_of(entry: &Entry) -> Result<&Table, ConfigError> {
    match &entry.value {
        Value::Table(table) => Ok(table),
        other => Err(invalid(entry, format!("must be a table, not {}", other.shown()))),
    }
}

fn find<'a>(root: &'a Table, table: &str, key: &str) -> Option<&'a Entry> {
    match root.get(table).map(|entry| &entry.value) {
        Some(Value::Table(table)) => table.get(key),
        _ => None,
    }
}

fn unknown<'a>(entry: &Entry, known: impl IntoIterator<Item = &'a str>) -> ConfigError {
    ConfigError::Unknown { origin: entry.origin.clone(), suggestion: closest(&entry.name, known) }
}
