//! How many virtual CPUs a VM needs for its containers. Pure.

use std::collections::BTreeMap;

use oci_spec::runtime::LinuxCpu;

use crate::VcpusPlan;

/// The period in µs of a quota whose period nobody names (sched-bwc.rst).
const DEFAULT_PERIOD: u64 = 100_000;

/// How much of the CPUs a container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bandwidth {
    /// In µs of each period; `None` for as much as there is.
    quota: Option<u64>,
    /// In µs, at least 1.
    period: u64,
}

/// The virtual CPUs of one VM, and who may use how much of them.
#[derive(Debug)]
pub(crate) struct Vcpus {
    plan: VcpusPlan,
    containers: BTreeMap<String, Bandwidth>,
    /// How many it has.
    has: u32,
}

impl Default for Bandwidth {
    /// That of a container without a limit.
    fn default() -> Self {
        Self { quota: None, period: DEFAULT_PERIOD }
    }
}

impl Bandwidth {
    /// With what `cpu` names. A quota or period of 0 is none that is named, a negative quota takes
    /// the limit away (config-linux.md).
    pub(crate) fn updated(self, cpu: Option<&LinuxCpu>) -> Self {
        let Some(cpu) = cpu else { return self };
        let quota = match cpu.quota() {
            None | Some(0) => self.quota,
            Some(quota) => u64::try_from(quota).ok(),
        };
        let period = cpu.period().filter(|period| *period > 0).unwrap_or(self.period);
        Self { quota, period }
    }

    /// In thousandths of a CPU, rounded up; `None` for no limit.
    fn millis(self) -> Option<u64> {
        self.quota.map(|quota| quota.saturating_mul(1000).div_ceil(self.period))
    }
}

impl Vcpus {
    /// Those of a VM as it has booted.
    pub(crate) fn new(plan: VcpusPlan) -> Self {
        Self { has: plan.boot, plan, containers: BTreeMap::new() }
    }

    /// Sets what a container may use, and returns what that was before, if it was here.
    pub(crate) fn set(&mut self, container: &str, bandwidth: Bandwidth) -> Option<Bandwidth> {
        self.containers.insert(container.to_owned(), bandwidth)
    }

    /// What a container may use after an update; `None` if that changes nothing.
    pub(crate) fn updated(&self, container: &str, cpu: &LinuxCpu) -> Option<Bandwidth> {
        let before = self.containers.get(container).copied();
        let after = before.unwrap_or_default().updated(Some(cpu));
        (before != Some(after)).then_some(after)
    }

    /// Forgets a container.
    pub(crate) fn forget(&mut self, container: &str) {
        self.containers.remove(container);
    }

    /// How many the VM should have: enough for all containers to use what they may, as far as the
    /// plan goes.
    pub(crate) fn wanted(&self) -> u32 {
        u32::try_from(self.needed()).unwrap_or(u32::MAX).min(self.plan.most)
    }

    /// The same without an end.
    fn needed(&self) -> u64 {
        let limited = self.containers.values().filter_map(|one| one.millis());
        let limited = limited.reduce(u64::saturating_add);
        let overhead = u64::from(self.plan.overhead_millis);
        let limited = limited.map_or(0, |sum| sum.saturating_add(overhead).div_ceil(1000));
        let unlimited = self.containers.values().any(|one| one.quota.is_none());
        let unlimited = if unlimited { self.plan.unlimited } else { 0 };
        limited.max(unlimited.into()).max(self.plan.boot.into())
    }

    /// How many it has.
    pub(crate) fn has(&self) -> u32 {
        self.has
    }

    /// Takes note of how many it has.
    pub(crate) fn now_has(&mut self, count: u32) {
        self.has = count;
    }

    /// Why the containers cannot use all that they may, as a sentence's end; `None` if they can.
    pub(crate) fn shortage(&self) -> Option<String> {
        let (needed, has) = (self.needed(), self.has);
        if needed <= has.into() {
            return None;
        }
        let reason = self.plan.fixed.clone().unwrap_or_else(|| {
            let most = self.plan.most;
            format!("it may have {most} at most (`default_maxvcpus`, or what the host has)")
        });
        Some(format!("its containers could use {needed} virtual CPUs, but it has {has}: {reason}"))
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

    fn vcpus(fixed: Option<&str>) -> Vcpus {
        Vcpus::new(VcpusPlan {
            boot: 2,
            most: 8,
            overhead_millis: 200,
            unlimited: 3,
            fixed: fixed.map(str::to_owned),
        })
    }

    fn cpu(json: serde_json::Value) -> LinuxCpu {
        serde_json::from_value(json).unwrap()
    }

    /// So many thousandths of a CPU.
    fn millis(millis: i64) -> Bandwidth {
        Bandwidth::default().updated(Some(&cpu(json!({ "quota": millis * 100 }))))
    }

    #[test]
    fn vm_has_what_its_containers_may_use_and_the_guest_needs() {
        let mut vcpus = vcpus(None);
        assert_eq!(vcpus.wanted(), 2);
        assert_eq!(vcpus.set("a", millis(1800)), None);
        assert_eq!(vcpus.wanted(), 2);
        vcpus.set("b", millis(1001));
        assert_eq!(vcpus.wanted(), 4);
        assert_eq!(vcpus.set("b", millis(900)), Some(millis(1001)));
        assert_eq!(vcpus.wanted(), 3);
        vcpus.forget("b");
        vcpus.set("a", millis(100));
        assert_eq!(vcpus.wanted(), 2, "never less than at boot");
    }

    #[test]
    fn container_without_a_limit_shares_what_the_others_have() {
        let mut vcpus = vcpus(None);
        vcpus.set("a", Bandwidth::default());
        assert_eq!(vcpus.wanted(), 3);
        vcpus.set("b", millis(5000));
        assert_eq!(vcpus.wanted(), 6);
    }

    #[test]
    fn limit_is_no_demand_and_a_shortage_says_why() {
        let mut larger = vcpus(None);
        larger.set("a", Bandwidth { quota: Some(u64::MAX), period: 1 });
        assert_eq!(larger.wanted(), 8);
        larger.now_has(8);
        assert!(larger.shortage().unwrap().contains("8 at most"));
        let mut fixed = vcpus(Some("clh cannot"));
        assert_eq!(fixed.shortage(), None);
        fixed.set("a", millis(4000));
        assert_eq!(
            fixed.shortage().unwrap(),
            "its containers could use 5 virtual CPUs, but it has 2: clh cannot"
        );
    }

    #[test]
    fn update_changes_what_it_names() {
        let mut vcpus = vcpus(None);
        vcpus.set("a", Bandwidth::default());
        assert_eq!(vcpus.updated("a", &cpu(json!({ "shares": 2 }))), None);
        assert_eq!(vcpus.updated("a", &cpu(json!({ "quota": 0, "period": 0 }))), None);
        let half = vcpus.updated("a", &cpu(json!({ "quota": 25_000, "period": 50_000 }))).unwrap();
        assert_eq!(half.millis(), Some(500));
        vcpus.set("a", half);
        let double = vcpus.updated("a", &cpu(json!({ "quota": 50_000 }))).unwrap();
        assert_eq!(double.millis(), Some(1000));
        let none = vcpus.updated("a", &cpu(json!({ "quota": -1 }))).unwrap();
        assert_eq!(none.millis(), None);
    }
}
