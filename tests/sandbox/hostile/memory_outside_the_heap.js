// Takes 1.5 GB of buffers outside of V8's heap where 64 MB are allowed.
// kind: resources
// form: stdio
// limits: {"wall_s": 8, "cpu_s": 6, "memory_mb": 64}
const kept = [];
for (let i = 0; i < 15; i++) kept.push(Buffer.alloc(100 << 20, 1));
console.log("took", kept.length);
