//! Integration tests of the workspace. There is nothing in here: see `it/main.rs`.
