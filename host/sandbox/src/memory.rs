//! How much memory a VM needs for its containers. Pure.

use std::collections::BTreeMap;

use oci_spec::runtime::LinuxResources;

use crate::MemoryPlan;

const MIB: u64 = 1 << 20;

/// What a container may use, in bytes; `None` for as much as there is.
pub(crate) type Limit = Option<u64>;

/// The memory of one VM, and who may use how much of it.
#[derive(Debug)]
pub(crate) struct Memory {
    plan: MemoryPlan,
    limits: BTreeMap<String, Limit>,
    /// What the guest was asked to have.
    asked_mib: u32,
}

/// What the resources of a new container limit it to. Zero and less mean no limit
/// (config-linux.md).
pub(crate) fn limit(resources: Option<&LinuxResources>) -> Limit {
    let limit = resources.and_then(|resources| resources.memory().as_ref())?.limit()?;
    u64::try_from(limit).ok().filter(|bytes| *bytes > 0)
}

/// What an update changes the limit to; `None` if it leaves it as it is.
pub(crate) fn new_limit(resources: &LinuxResources) -> Option<Limit> {
    let named = resources.memory().as_ref()?.limit()?;
    (named != 0).then(|| limit(Some(resources)))
}

impl Memory {
    /// That of a VM as it has booted.
    pub(crate) fn new(plan: MemoryPlan) -> Self {
        Self { asked_mib: plan.boot_mib, plan, limits: BTreeMap::new() }
    }

    /// Sets what a container may use, and returns what that was before, if it was here.
    pub(crate) fn set(&mut self, container: &str, limit: Limit) -> Option<Limit> {
        self.limits.insert(container.to_owned(), limit)
    }

    /// Forgets a container.
    pub(crate) fn forget(&mut self, container: &str) {
        self.limits.remove(container);
    }

    /// What the VM should have: enough for all containers to use what they may, as far as the plan
    /// goes.
    pub(crate) fn wanted_mib(&self) -> u32 {
        u32::try_from(self.needed_mib()).unwrap_or(u32::MAX).min(self.plan.most_mib)
    }

    /// The same without an end.
    fn needed_mib(&self) -> u64 {
        let limited = self.limits.values().flatten().map(|bytes| bytes.div_ceil(MIB));
        let limited = limited.reduce(u64::saturating_add);
        let limited = limited.map_or(0, |sum| sum.saturating_add(self.plan.overhead_mib.into()));
        let unlimited = self.limits.values().any(Option::is_none);
        let unlimited = if unlimited { self.plan.unlimited_mib } else { 0 };
        let needed = limited.max(unlimited.into()).max(self.plan.boot_mib.into());
        needed.saturating_add(needed % 2)
    }

    /// What the guest was asked to have last.
    pub(crate) fn asked_mib(&self) -> u32 {
        self.asked_mib
    }

    /// Takes note of what the guest was asked to have.
    pub(crate) fn ask(&mut self, mib: u32) {
        self.asked_mib = mib;
    }

    /// Why the containers cannot use all that they may, as a sentence's end; `None` if they can.
    pub(crate) fn shortage(&self) -> Option<String> {
        let (needed, has) = (self.needed_mib(), self.asked_mib);
        if needed <= has.into() {
            return None;
        }
        let most = self.plan.most_mib;
        let reason = self.plan.fixed.clone().unwrap_or_else(|| {
            format!("it may have {most} MiB at most (`default_maxmemory`, or the host's memory)")
        });
        Some(format!("its containers may use {needed} MiB, but it has {has} MiB: {reason}"))
    }

    /// Whether the VM takes more than it has booted with.
    pub(crate) fn can_grow(&self) -> bool {
        self.plan.fixed.is_none()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn memory(fixed: Option<&str>) -> Memory {
        Memory::new(MemoryPlan {
            boot_mib: 640,
            most_mib: 8192,
            overhead_mib: 128,
            unlimited_mib: 2048,
            fixed: fixed.map(str::to_owned),
        })
    }

    fn mib(mib: u64) -> Limit {
        Some(mib * MIB)
    }

    #[test]
    fn vm_has_what_its_containers_may_use_and_the_guest_needs() {
        let mut memory = memory(None);
        assert_eq!(memory.wanted_mib(), 640);
        assert_eq!(memory.set("a", mib(512)), None);
        assert_eq!(memory.wanted_mib(), 640);
        memory.set("b", mib(1001));
        assert_eq!(memory.wanted_mib(), 512 + 1001 + 128 + 1);
        assert_eq!(memory.set("b", mib(10)), Some(mib(1001)));
        assert_eq!(memory.wanted_mib(), 650);
        memory.forget("a");
        assert_eq!(memory.wanted_mib(), 640, "never less than at boot");
    }

    #[test]
    fn container_without_a_limit_shares_what_the_others_have() {
        let mut memory = memory(None);
        memory.set("a", None);
        assert_eq!(memory.wanted_mib(), 2048);
        memory.set("b", mib(4096));
        assert_eq!(memory.wanted_mib(), 4096 + 128);
    }

    #[test]
    fn limit_is_no_demand() {
        let mut memory = memory(None);
        memory.set("a", Some(u64::MAX));
        assert_eq!(memory.wanted_mib(), 8192);
        memory.ask(8192);
        assert!(memory.shortage().unwrap().contains("8192 MiB at most"));
    }

    #[test]
    fn shortage_says_why() {
        let mut memory = memory(Some("clh cannot"));
        assert_eq!(memory.shortage(), None);
        memory.set("a", mib(1024));
        let shortage = memory.shortage().unwrap();
        assert_eq!(shortage, "its containers may use 1152 MiB, but it has 640 MiB: clh cannot");
    }

    #[test]
    fn update_changes_the_limit_only_if_it_names_one() {
        let resources = |json| serde_json::from_value::<LinuxResources>(json).unwrap();
        let memory = |limit: i64| resources(json!({ "memory": { "limit": limit } }));
        assert_eq!(new_limit(&resources(json!({ "cpu": { "shares": 2 } }))), None);
        assert_eq!(new_limit(&resources(json!({ "memory": {} }))), None);
        assert_eq!(new_limit(&memory(0)), None);
        assert_eq!(new_limit(&memory(-1)), Some(None));
        assert_eq!(new_limit(&memory(4096)), Some(Some(4096)));
        assert_eq!(limit(None), None);
        assert_eq!(limit(Some(&memory(4096))), Some(4096));
    }
}
