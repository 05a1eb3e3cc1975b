//! A file tree as plain maps and byte vectors: what the store is compared with. A snapshot is a clone.

use std::collections::BTreeMap;

use nix::errno::Errno;
use pageserver::{Fallocate, Ino, Kind, Rename};

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Kind,
    pub nlink: u32,
    pub data: Vec<u8>,
    pub children: BTreeMap<String, Ino>,
    pub parent: Ino,
}

#[derive(Clone, Debug)]
pub struct Tree(pub BTreeMap<Ino, Node>);

impl Default for Tree {
    fn default() -> Tree {
        Tree(BTreeMap::from([(Ino::ROOT, new_node(Kind::Dir, Ino::ROOT))]))
    }
}

fn new_node(kind: Kind, parent: Ino) -> Node {
    Node {
        kind,
        nlink: if kind == Kind::Dir { 2 } else { 1 },
        data: Vec::new(),
        children: BTreeMap::new(),
        parent,
    }
}

impl Tree {
    pub fn node(&self, ino: Ino) -> &Node {
        &self.0[&ino]
    }

    fn node_mut(&mut self, ino: Ino) -> &mut Node {
        self.0.get_mut(&ino).expect("a node of the model")
    }

    pub fn of_kind(&self, kind: Kind) -> Vec<Ino> {
        let live = self.0.iter().filter(|(_, node)| node.kind == kind && node.nlink > 0);
        live.map(|(ino, _)| *ino).collect()
    }

    fn child(&self, dir: Ino, name: &str) -> Result<Ino, Errno> {
        self.node(dir).children.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn check_free(&self, dir: Ino, name: &str) -> Result<(), Errno> {
        match self.child(dir, name) {
            Ok(_) => Err(Errno::EEXIST),
            Err(_) => Ok(()),
        }
    }

    fn add(&mut self, dir: Ino, name: &str, ino: Ino) {
        let is_dir = self.node(ino).kind == Kind::Dir;
        self.node_mut(ino).parent = dir;
        let dir = self.node_mut(dir);
        dir.nlink += u32::from(is_dir);
        dir.children.insert(name.into(), ino);
    }

    fn take(&mut self, dir: Ino, name: &str, ino: Ino) {
        let is_dir = self.node(ino).kind == Kind::Dir;
        let dir = self.node_mut(dir);
        dir.nlink -= u32::from(is_dir);
        dir.children.remove(name);
    }

    /// `made` is the number that the store gave, when it made the node.
    pub fn create(&mut self, dir: Ino, name: &str, kind: Kind, data: &[u8], made: Option<Ino>) -> Result<(), Errno> {
        self.check_free(dir, name)?;
        let ino = made.expect("the store refused what the model allows");
        let mut node = new_node(kind, dir);
        node.data = data.into();
        self.0.insert(ino, node);
        self.add(dir, name, ino);
        Ok(())
    }

    pub fn link(&mut self, ino: Ino, dir: Ino, name: &str) -> Result<(), Errno> {
        self.check_free(dir, name)?;
        if self.node(ino).kind == Kind::Dir {
            return Err(Errno::EPERM);
        }
        self.node_mut(ino).nlink += 1;
        self.add(dir, name, ino);
        Ok(())
    }

    fn unname(&mut self, ino: Ino) {
        let node = self.node_mut(ino);
        node.nlink = if node.kind == Kind::Dir { 0 } else { node.nlink - 1 };
    }

    pub fn unlink(&mut self, dir: Ino, name: &str) -> Result<Ino, Errno> {
        let ino = self.child(dir, name)?;
        if self.node(ino).kind == Kind::Dir {
            return Err(Errno::EISDIR);
        }
        self.take(dir, name, ino);
        self.unname(ino);
        Ok(ino)
    }

    pub fn rmdir(&mut self, dir: Ino, name: &str) -> Result<Ino, Errno> {
        let ino = self.child(dir, name)?;
        match self.node(ino) {
            node if node.kind != Kind::Dir => return Err(Errno::ENOTDIR),
            node if !node.children.is_empty() => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.take(dir, name, ino);
        self.unname(ino);
        Ok(ino)
    }

    fn is_below(&self, mut dir: Ino, ino: Ino) -> bool {
        loop {
            match dir {
                _ if dir == ino => return true,
                Ino::ROOT => return false,
                _ => dir = self.node(dir).parent,
            }
        }
    }

    pub fn rename(&mut self, from: (Ino, &str), to: (Ino, &str), how: Rename) -> Result<Option<Ino>, Errno> {
        let ino = self.child(from.0, from.1)?;
        let target = self.child(to.0, to.1).ok();
        if self.is_below(to.0, ino) {
            return Err(Errno::EINVAL);
        }
        let target = match (how, target) {
            (Rename::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (Rename::Exchange, None) => return Err(Errno::ENOENT),
            (_, Some(target)) if target == ino => return Ok(None),
            (_, target) => target,
        };
        if let (Rename::Exchange, Some(target)) = (how, target) {
            return self.exchange(from, ino, to, target);
        }
        if let Some(target) = target {
            self.check_replace(ino, target)?;
            self.take(to.0, to.1, target);
            self.unname(target);
        }
        self.take(from.0, from.1, ino);
        self.add(to.0, to.1, ino);
        Ok(target)
    }

    fn exchange(&mut self, a: (Ino, &str), a_ino: Ino, b: (Ino, &str), b_ino: Ino) -> Result<Option<Ino>, Errno> {
        if self.is_below(a.0, b_ino) {
            return Err(Errno::EINVAL);
        }
        self.take(a.0, a.1, a_ino);
        self.take(b.0, b.1, b_ino);
        self.add(b.0, b.1, a_ino);
        self.add(a.0, a.1, b_ino);
        Ok(None)
    }

    fn check_replace(&self, ino: Ino, target: Ino) -> Result<(), Errno> {
        let is_dir = |ino| self.node(ino).kind == Kind::Dir;
        match (is_dir(ino), is_dir(target)) {
            (true, false) => Err(Errno::ENOTDIR),
            (false, true) => Err(Errno::EISDIR),
            (true, true) if !self.node(target).children.is_empty() => Err(Errno::ENOTEMPTY),
            _ => Ok(()),
        }
    }

    pub fn write(&mut self, ino: Ino, offset: usize, bytes: &[u8]) {
        let data = &mut self.node_mut(ino).data;
        data.resize(data.len().max(offset + bytes.len()), 0);
        data[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub fn truncate(&mut self, ino: Ino, size: usize) {
        self.node_mut(ino).data.resize(size, 0);
    }

    pub fn fallocate(&mut self, ino: Ino, how: Fallocate, offset: usize, len: usize) {
        let data = &mut self.node_mut(ino).data;
        if matches!(how, Fallocate::Extend | Fallocate::ZeroRange { keep_size: false }) {
            data.resize(data.len().max(offset + len), 0);
        }
        if matches!(how, Fallocate::PunchHole | Fallocate::ZeroRange { .. }) {
            let end = data.len().min(offset + len);
            data[offset.min(end)..end].fill(0);
        }
    }
}
