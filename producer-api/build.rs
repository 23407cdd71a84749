//! Makes sure of the folder of the dashboard, which is part of this crate, and says when to build
//! again.

fn main() {
    // Ignored by Git, and empty until the dashboard is built: then there is none in the binary.
    // A folder that cannot be made is as good as an empty one.
    let _ = std::fs::create_dir_all("../web/dist");
    println!("cargo::rerun-if-changed=build.rs");
    // A debug build reads the files when it runs; a release build has them inside.
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        println!("cargo::rerun-if-changed=../web/dist");
    }
}
