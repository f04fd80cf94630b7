//! The protocol is other makers', too: what they have is here with the same names, numbers and
//! types, and what is here beyond that is on a list.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by a panic")]

use std::collections::BTreeSet;
use std::path::Path;

use protobuf::descriptor::field_descriptor_proto::{Label, Type};
use protobuf::descriptor::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
};

/// What Kata Containers 4.1.0 has.
const THEIRS: &str = include_str!("protocol.txt");

/// The files that the crate's messages and services are generated from; see `build.rs`.
const FILES: [&str; 5] = ["agent", "csi", "health", "oci", "types"];

/// What we have beyond that. Decoders of other makers skip it.
const OURS: [&str; 3] = [
    "message grpc.CreateContainerRequest: 1000 guest_pidns bool",
    "message grpc.LinuxResources: 1000 Unified map<string,string>",
    "message grpc.LinuxSeccomp: 1000 DefaultErrnoRet uint32?",
];

#[test]
fn everything_is_as_other_makers_have_it() {
    let theirs: BTreeSet<String> = facts_of_fixture(THEIRS);
    assert!(theirs.len() > 400, "the fixture has {} facts only", theirs.len());
    let ours = facts_of_files();
    let lacking: Vec<_> = theirs.difference(&ours).collect();
    assert!(lacking.is_empty(), "missing, or another here: {lacking:#?}");
    let further: Vec<_> = ours.difference(&theirs).collect();
    assert_eq!(further, OURS, "what only we have");
}

/// One line for each method, field and value, with what it is of; and one for each thing that has
/// any of these.
fn facts_of_fixture(text: &str) -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    let mut head = "";
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix("  ") {
            None => {
                head = line;
                facts.insert(head.to_owned());
            }
            Some(items) => facts.extend(
                items
                    .split(';')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(|item| format!("{head}: {item}")),
            ),
        }
    }
    facts
}

fn facts_of_files() -> BTreeSet<String> {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let mut parser = protobuf_parse::Parser::new();
    parser.pure().include(&proto).inputs(FILES.map(|name| proto.join(format!("{name}.proto"))));
    let files = parser.file_descriptor_set().unwrap().file;
    let mut facts = BTreeSet::new();
    for file in files.iter().filter(|file| !file.package().starts_with("google.")) {
        describe_services(file, &mut facts);
        for message in &file.message_type {
            describe_message(file.package(), "", message, &mut facts);
        }
        for one in &file.enum_type {
            describe_enum(file.package(), "", one, &mut facts);
        }
    }
    facts
}

fn describe_services(file: &FileDescriptorProto, facts: &mut BTreeSet<String>) {
    for service in &file.service {
        let head = format!("service {}.{}", file.package(), service.name());
        for method in &service.method {
            let [request, response] =
                [method.input_type(), method.output_type()].map(|name| short(file.package(), name));
            assert!(!method.client_streaming() && !method.server_streaming(), "{}", method.name());
            facts.insert(format!("{head}: {} {request} {response}", method.name()));
        }
        facts.insert(head);
    }
}

fn describe_message(
    package: &str,
    outer: &str,
    message: &DescriptorProto,
    facts: &mut BTreeSet<String>,
) {
    let name = format!("{outer}{}", message.name());
    let head = format!("message {package}.{name}");
    for field in &message.field {
        let kind = type_of(package, message, field);
        facts.insert(format!("{head}: {} {} {kind}", field.number(), field.name()));
    }
    facts.insert(head);
    let inner = format!("{name}.");
    for one in message.nested_type.iter().filter(|one| !one.options.map_entry()) {
        describe_message(package, &inner, one, facts);
    }
    for one in &message.enum_type {
        describe_enum(package, &inner, one, facts);
    }
}

fn describe_enum(
    package: &str,
    outer: &str,
    one: &EnumDescriptorProto,
    facts: &mut BTreeSet<String>,
) {
    let head = format!("enum {package}.{outer}{}", one.name());
    for value in &one.value {
        facts.insert(format!("{head}: {} {}", value.number(), value.name()));
    }
    facts.insert(head);
}

fn type_of(package: &str, message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let name = match field.type_() {
        Type::TYPE_MESSAGE | Type::TYPE_ENUM => short(package, field.type_name()),
        Type::TYPE_INT32 => "int32",
        Type::TYPE_INT64 => "int64",
        Type::TYPE_UINT32 => "uint32",
        Type::TYPE_UINT64 => "uint64",
        Type::TYPE_BOOL => "bool",
        Type::TYPE_STRING => "string",
        Type::TYPE_BYTES => "bytes",
        other => panic!("{} of {} is a {other:?}", field.name(), message.name()),
    };
    let entry =
        message.nested_type.iter().find(|one| one.options.map_entry() && one.name() == name);
    if let Some(entry) = entry {
        let parts: Vec<_> =
            entry.field.iter().map(|part| type_of(package, message, part)).collect();
        return format!("map<{}>", parts.join(","));
    }
    if field.label() == Label::LABEL_REPEATED {
        return format!("{name}[]");
    }
    if field.proto3_optional() {
        return format!("{name}?");
    }
    match field.has_oneof_index() {
        true => {
            let oneof = usize::try_from(field.oneof_index()).unwrap();
            format!("{name}/{}", message.oneof_decl[oneof].name())
        }
        false => name.to_owned(),
    }
}

/// `.grpc.Outer.Inner` is `Inner` within its package, and another package's type keeps that; but
/// for protobuf's own `Empty`.
fn short<'a>(package: &str, name: &'a str) -> &'a str {
    let name = name.trim_start_matches('.');
    let within = name.strip_prefix(package).and_then(|name| name.strip_prefix('.'));
    let known = within.or_else(|| name.strip_prefix("google.protobuf."));
    known.map_or(name, |name| name.rsplit('.').next().unwrap_or(name))
}
