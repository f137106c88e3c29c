//! Every variant of every kernel composes, parses, agrees with its Rust
//! description, and is valid for Vulkan, Metal and DX12.

use demist::engine::kernel::{Kernel, bind_writable, check, compose, parse, widen};
use demist::engine::{bench, ops};
use naga::valid::{Capabilities, ValidationFlags, Validator};

/// Those of the ops, and those that only measure a device.
fn all_kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    [ops::kernels(), bench::kernels()].concat()
}

#[test]
fn every_variant_compiles_for_every_backend() {
    let mut variants = 0;
    for (kernel, all_defines) in all_kernels() {
        assert!(!all_defines.is_empty(), "{} has no variants", kernel.name);
        for defines in all_defines {
            assert_eq!(defines.len(), kernel.defines.len(), "{}: {defines:?}", kernel.name);
            let wgsl = compose(kernel, &defines).unwrap();
            let mut module = parse(kernel, &wgsl).unwrap();
            check(kernel, &defines, &module).unwrap();
            // Packing halves belongs to WebGPU itself; naga asks for it because
            // some OpenGL drivers lack it.
            let mut core = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
            // What is measured where a device has such arithmetic.
            core.set(Capabilities::SHADER_FLOAT16, kernel.define(&defines, "F16") != 0);
            // What is offered to a device that gains by it.
            core.set(Capabilities::IMMEDIATES, kernel.uses_immediates(&defines));
            core.set(Capabilities::SUBGROUP, kernel.uses_subgroups(&defines));
            // What cooperative matrices need, where a device has them.
            let coop = kernel.define(&defines, "COOP");
            let needs = Capabilities::COOPERATIVE_MATRIX
                | Capabilities::SHADER_FLOAT16
                | Capabilities::SUBGROUP;
            core |= if coop != 0 { needs } else { Capabilities::empty() };
            let info =
                Validator::new(ValidationFlags::all(), core).validate(&module).unwrap_or_else(
                    |e| panic!("{} {defines:?}: {}", kernel.name, e.emit_to_string(&wgsl)),
                );
            write_all(kernel.name, &module, &info, coop);
            // A plan may have to bind what is read as writable.
            bind_writable(&mut module, u32::MAX);
            let info = Validator::new(ValidationFlags::all(), core).validate(&module);
            assert!(info.is_ok(), "{} {defines:?}, reads bound as writable", kernel.name);
            check_widened(kernel, &wgsl, core);
            variants += 1;
        }
    }
    assert!(variants > 50, "only {variants} variants");
}

/// What software drivers get is valid too, and accesses all quads by 64 bits.
fn check_widened(kernel: &Kernel, wgsl: &str, core: Capabilities) {
    let wide = widen(wgsl);
    let module = parse(kernel, &wide).unwrap();
    let core = core | Capabilities::SHADER_INT64;
    let info = Validator::new(ValidationFlags::all(), core).validate(&module);
    assert!(info.is_ok(), "{} widened: {}", kernel.name, info.unwrap_err().emit_to_string(&wide));
    for line in wide.lines().filter(|l| l.contains("var<storage")) {
        let narrow = ["array<vec4<f32>>", "array<vec2<u32>>"].iter().any(|ty| line.contains(ty));
        assert!(!narrow, "{}: {line}", kernel.name);
    }
}

/// naga writes cooperative matrices for Vulkan and Metal, not for Direct3D.
fn write_all(name: &str, module: &naga::Module, info: &naga::valid::ModuleInfo, coop: i64) {
    let spirv = naga::back::spv::write_vec(module, info, &Default::default(), None);
    assert!(spirv.is_ok_and(|words| words.len() > 100), "{name}: SPIR-V");
    let options = naga::back::msl::Options { fake_missing_bindings: true, ..Default::default() };
    let options = match coop {
        0 => options,
        _ => naga::back::msl::Options { lang_version: (2, 3), ..options },
    };
    let msl = naga::back::msl::write_string(module, info, &options, &Default::default());
    assert!(msl.is_ok_and(|(text, _)| text.contains("kernel void")), "{name}: MSL");
    if coop != 0 {
        return;
    }
    let options = naga::back::hlsl::Options {
        fake_missing_bindings: true,
        immediates_target: Some(naga::back::hlsl::BindTarget::default()),
        shader_model: naga::back::hlsl::ShaderModel::V6_2,
        ..Default::default()
    };
    let pipeline = naga::back::hlsl::PipelineOptions::default();
    let mut text = String::new();
    let written =
        naga::back::hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None);
    assert!(written.is_ok() && text.contains("numthreads"), "{name}: HLSL");
}

#[test]
fn every_shader_file_belongs_to_a_kernel_or_is_included() {
    let used: Vec<&str> = all_kernels().iter().map(|(k, _)| k.source).collect();
    for entry in std::fs::read_dir("shaders").unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let included = used.iter().any(|s| s.contains(&format!("\"{name}\"")));
        assert!(used.contains(&text.as_str()) || included, "{name} is not used by any kernel");
    }
}

#[test]
fn names_of_kernels_are_unique() {
    let mut names: Vec<&str> = all_kernels().iter().map(|(k, _)| k.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn a_disagreeing_description_is_found() {
    let (kernel, variants) = &ops::kernels()[0];
    let wgsl = compose(kernel, &variants[0]).unwrap();
    let renamed =
        wgsl.replace("var<storage, read> x:", "var<storage, read> wrong:").replace("x[", "wrong[");
    let module = parse(kernel, &renamed).unwrap();
    let message = check(kernel, &variants[0], &module).unwrap_err().to_string();
    assert!(message.contains("wrong"), "{message}");
}
