//! How what isn't a type of the interface's own looks in its description. The page store's names know nothing of it, so
//! these stand in for them; a name that fits its pattern is one that can be, save that `HEAD` and `CURRENT` are the store's own.

use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use super::pgs::At;
use crate::name::ViewName;

/// Stands in for a branch's, a pg's or a storage's name.
pub enum Name {}

/// Stands in for the part of a snapshot's name after the `@`.
pub enum Tag {}

/// Stands in for `branch@tag`.
pub enum SnapshotName {}

/// Stands in for an absolute path.
pub enum Path {}

/// Stands in for one of the events that a job's `events` sends.
pub enum JobEvent {}

const NAME: &str = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}";

/// Tags are also `HEAD{n}`, which checkouts give.
const TAG: &str = r"([A-Za-z0-9_][A-Za-z0-9_.-]{0,62}|HEAD\{[0-9]{1,19}\})";

fn text(pattern: String, description: &str, example: &str) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(format!("^{pattern}$")))
        .description(Some(description))
        .examples([example])
        .into()
}

impl PartialSchema for Name {
    fn schema() -> RefOr<Schema> {
        text(NAME.into(), "The name of a branch, a pg or a storage.", "main")
    }
}

impl PartialSchema for Tag {
    fn schema() -> RefOr<Schema> {
        text(TAG.into(), "What a snapshot is called on its branch.", "before")
    }
}

impl PartialSchema for SnapshotName {
    fn schema() -> RefOr<Schema> {
        text(
            format!("{NAME}@{TAG}"),
            "A snapshot: its branch and its tag.",
            "main@before",
        )
    }
}

impl PartialSchema for Path {
    fn schema() -> RefOr<Schema> {
        text("/.*".into(), "An absolute path on the service's machine.", "/srv/data")
    }
}

impl PartialSchema for ViewName {
    fn schema() -> RefOr<Schema> {
        let what = "What can be mounted: a branch, or a snapshot of it.";
        text(format!("{NAME}(@{TAG})?"), what, "main@before")
    }
}

impl PartialSchema for JobEvent {
    fn schema() -> RefOr<Schema> {
        let kinds = ObjectBuilder::new().schema_type(Type::String);
        ObjectBuilder::new()
            .property("event", kinds.enum_values(Some(["step", "done", "failed"])))
            .property("data", ObjectBuilder::new().schema_type(Type::String))
            .required("event")
            .required("data")
            .description(Some(
                "A step as a sentence; at the end as JSON the result, or the problem.",
            ))
            .into()
    }
}

/// Derived it would ask [`std::path::PathBuf`] for its schema.
impl PartialSchema for At {
    fn schema() -> RefOr<Schema> {
        let place = |name: &str| {
            ObjectBuilder::new()
                .property(name, Ref::from_schema_name(Path::name()))
                .required(name)
                .additional_properties(Some(AdditionalProperties::FreeForm(false)))
        };
        OneOfBuilder::new()
            .item(place("dir"))
            .item(place("in"))
            .item(ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["beside-store"])))
            .description(Some(
                "A place for a data directory: this one, one named like the pg in this one, or one beside the store. Made when it is missing.",
            ))
            .into()
    }
}

impl ToSchema for At {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((Path::name().into(), Path::schema()));
    }
}

impl ToSchema for JobEvent {}
impl ToSchema for Name {}
impl ToSchema for Path {}
impl ToSchema for Tag {}
impl ToSchema for SnapshotName {}
impl ToSchema for ViewName {}
