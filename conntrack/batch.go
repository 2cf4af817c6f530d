package conntrack

import "fmt"

// Batch collects changes for [Conn.Do], which sends many of them in one system
// call. They are carried out in order and independently: one that fails stops
// none of those after it. The zero Batch is empty and ready; it must not be
// used by two goroutines at once.
type Batch struct {
	enc encoder
	ops []op
}

type op struct {
	end   int // of the message in enc.b
	tuple Tuple
	verb  string
}

// Len returns the number of changes, and so of the next one's index.
func (b *Batch) Len() int { return len(b.ops) }

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() {
	b.enc.b = b.enc.b[:0]
	b.ops = b.ops[:0]
}

// Delete adds the removal of the entry with this original tuple, whatever its
// id. Its result is fs.ErrNotExist (ENOENT) if there is none.
func (b *Batch) Delete(orig Tuple) { b.delete(orig, 0) }

// DeleteFlow adds the removal of that very entry. Its result is fs.ErrNotExist
// (ENOENT) also if another one has the tuple by now.
func (b *Batch) DeleteFlow(f *Flow) { b.delete(f.Orig, f.ID) }

func (b *Batch) delete(orig Tuple, id uint32) {
	orig.Src, orig.Dst = unmap(orig.Src), unmap(orig.Dst)
	b.enc.delete(&orig, id, 0)
	b.ops = append(b.ops, op{end: len(b.enc.b), tuple: orig, verb: "delete"})
}

// Create adds the creation of an entry, or refuses one that is not valid. Its
// result is fs.ErrExist (EEXIST) if either of its tuples is taken.
func (b *Batch) Create(e Entry) error {
	if err := e.Valid(); err != nil {
		return fmt.Errorf("create flow %s: %w", e.Orig, err)
	}
	b.enc.create(&e, 0)
	b.ops = append(b.ops, op{end: len(b.enc.b), tuple: e.Orig, verb: "create"})
	return nil
}
