//! Says when to build again: the dashboard in `web/dist` is part of this crate.
#![expect(
    clippy::print_stdout,
    reason = "it is how a build script talks to cargo"
)]

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A debug build reads the files when it runs. A release build has them inside; when there are
    // none, it looks each time whether there are some now.
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        println!("cargo::rerun-if-changed=../web/dist");
    }
}
