//! A toolchain that compiles for Workers: the usual one with one more target, or that of a Debian without access to it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{Outcome, output, run, run_within};
use crate::tools::install_packages;

pub(crate) const TARGET: &str = "wasm32-unknown-unknown";

/// Debian's own compiler for its web browsers, the sources of its standard library, and a linker.
const DEBIAN_PACKAGES: [&str; 5] = [
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    "rust-web-llvm",
    "lld-22",
];

const RUSTUP_LIMIT: Duration = Duration::from_secs(120);

/// Where the `rustc` and the `cargo` of wasm builds are.
#[derive(Debug)]
pub(crate) enum Toolchain {
    /// The same as of all other builds.
    Usual,
    /// Debian's, for wasm builds only.
    Debian,
}

impl Toolchain {
    /// The first of them that is there or can be had. `scratch` is for a build.
    pub(crate) fn prepare(scratch: &Path) -> Result<Self, String> {
        let known = [Self::Usual, Self::Debian];
        if let Some(ready) = known.into_iter().find(Self::has_target) {
            return Ok(ready);
        }
        let with_rustup = add_target().map(|()| Self::Usual);
        let prepared = with_rustup.or_else(|rustup| {
            let with_apt = prepare_debian(scratch).map(|()| Self::Debian);
            with_apt.map_err(|apt| format!("{rustup}\n{apt}"))
        });
        prepared.map_err(|errors| {
            format!(
                "Rust cannot compile for {TARGET} here. Run `rustup target add {TARGET}`; \
                 or as root on Debian `apt-get install {}`. What was tried:\n{errors}",
                DEBIAN_PACKAGES.join(" ")
            )
        })
    }

    /// A program that finds this `rustc` and this `cargo`, and nothing of the cargo that runs us.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env_remove("CARGO").env_remove("RUSTC");
        if matches!(self, Self::Debian) {
            command.env("PATH", debian_first());
        }
        command
    }

    pub(crate) fn cargo(&self) -> Command {
        match self {
            Self::Usual => self.command(env!("CARGO")),
            Self::Debian => self.command("/usr/bin/cargo"),
        }
    }

    /// Debian has no clippy for this compiler.
    pub(crate) fn has_linter(&self) -> bool {
        matches!(self, Self::Usual)
    }

    /// Which compiler it is.
    pub(crate) fn version(&self) -> Result<String, String> {
        let mut rustc = self.rustc();
        rustc.arg("--version");
        output(rustc)
    }

    fn rustc(&self) -> Command {
        match self {
            Self::Usual => self.command("rustc"),
            Self::Debian => self.command("/usr/bin/rustc"),
        }
    }

    fn has_target(&self) -> bool {
        let libraries = self
            .libraries()
            .and_then(|folder| fs::read_dir(folder).ok());
        libraries.is_some_and(|mut files| {
            files.any(|file| {
                file.is_ok_and(|file| file.file_name().to_string_lossy().starts_with("libstd-"))
            })
        })
    }

    /// Where the compiled standard library belongs.
    fn libraries(&self) -> Option<PathBuf> {
        let mut rustc = self.rustc();
        rustc.args(["--print", "sysroot"]);
        let sysroot = output(rustc).ok()?;
        let folder = Path::new(sysroot.trim()).join("lib/rustlib");
        Some(folder.join(TARGET).join("lib"))
    }
}

fn add_target() -> Outcome {
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", TARGET]);
    run_within(rustup, RUSTUP_LIMIT)
}

fn prepare_debian(scratch: &Path) -> Outcome {
    install_packages(&DEBIAN_PACKAGES)?;
    let built = build_std(scratch)?;
    let libraries = Toolchain::Debian
        .libraries()
        .ok_or("Debian's rustc does not say where its libraries are")?;
    copy_libraries(&built, &libraries)
        .map_err(|error| format!("{}: {error}", libraries.display()))?;
    match Toolchain::Debian.has_target() {
        true => Ok(()),
        false => Err(format!("{} still has no libstd", libraries.display())),
    }
}

/// Compiles the standard library with an empty crate. Returns the folder where it is.
fn build_std(scratch: &Path) -> Result<PathBuf, String> {
    let folder = scratch.join("std");
    empty_crate(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut cargo = Toolchain::Debian.cargo();
    cargo
        .args(["build", "--release", "--target", TARGET])
        .arg("-Zbuild-std=std,panic_abort,panic_unwind,proc_macro,test")
        .current_dir(&folder)
        .env("CARGO_TARGET_DIR", folder.join("target"))
        // Debian's compiler is a stable one. Its own library may be built all the same.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Cembed-bitcode=yes");
    run(cargo)?;
    Ok(folder.join("target").join(TARGET).join("release/deps"))
}

fn empty_crate(folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder.join("src"))?;
    fs::write(folder.join("src/lib.rs"), "")?;
    fs::write(
        folder.join("Cargo.toml"),
        "[package]\nname = \"empty\"\nedition = \"2024\"\n\n[workspace]\n",
    )
}

fn copy_libraries(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for file in fs::read_dir(from)? {
        let file = file?;
        let name = file.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".rlib") && !name.starts_with("libempty-") {
            fs::copy(file.path(), to.join(&*name))?;
        }
    }
    Ok(())
}

fn debian_first() -> OsString {
    let mut path = OsString::from("/usr/bin:");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}
