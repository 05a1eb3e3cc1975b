use super::*;
use crate::disk::Disk;
use crate::layer::Layer;
use crate::store::Store;

/// A backing file of two blocks, of which it has the first ones.
fn backing(layer: &Arc<Layer>, blocks: u64, byte: u8) -> Arc<Backing> {
    let backing = layer.create_backing(Ino(5)).expect("made");
    let bytes = vec![byte; (blocks * BLOCK) as usize];
    backing.write_at(&bytes, 0).1.expect("written");
    let file = backing.file().expect("open");
    backing.disk().set_len(&file, 2 * BLOCK).expect("of two blocks");
    backing.sync().expect("durable");
    backing
}

/// A map has 16 bits for a part, and a load finds one in each layer that the file was written in.
#[test]
fn more_parts_than_a_map_tells_apart_are_read_as_what_they_are() {
    let program = std::env::current_exe().expect("this program");
    let dir = program.with_file_name(format!("many-parts-{}", std::process::id()));
    Store::create(&dir, Disk::new()).expect("a store");
    let store = Store::open(&dir, Disk::new()).expect("opens");
    let [below, above] = [(900, 2, 1), (901, 1, 2)].map(|(id, blocks, byte)| {
        let layer = store.shared.layers.create(LayerId(id)).expect("a layer");
        let floor = 2 * BLOCK;
        let backing = backing(&layer, blocks, byte);
        Part { backing, floor }
    });
    for above_it in [PARTS_MAX - 1, PARTS_MAX, PARTS_MAX + 1, 70_000] {
        let parts = std::iter::once(&below).chain(std::iter::repeat_n(&above, above_it));
        let mut content = Content {
            size: 2 * BLOCK,
            parts: parts.cloned().collect(),
            map: None,
            saved_floor: u64::MAX,
        };
        let mapped = content.mapped().expect("mapped");
        assert!(mapped.parts.len() <= UNSEEN_EVERY, "{} parts", mapped.parts.len());
        let mut bytes = [0; 2 * BLOCK as usize];
        mapped.read(0, &mut bytes, Wait::Yes).expect("read");
        let (first, second) = bytes.split_at(BLOCK as usize);
        assert!(
            first.iter().all(|byte| *byte == 2),
            "{above_it} parts above: older bytes"
        );
        assert!(second.iter().all(|byte| *byte == 1), "{above_it} parts above");
    }
    drop((store, below, above));
    std::fs::remove_dir_all(&dir).expect("removed");
}
