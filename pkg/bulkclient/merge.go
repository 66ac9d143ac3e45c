package bulkclient

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// merge makes an up-to-date copy of the last folder: its lines without the changed and deleted resources, then the lines
// of the changes. A file keeps its name. The lines of a type's changes follow its last file, so the number of files does
// not grow with each merge; a type without a file gets one, and a file without a line is left out. Every read file is
// compared with its record first. Memory: the ids of what changed, and the places of their old lines.
type merge struct {
	last, changes, folder *folder
	base                  finished // of last
	zip                   bool     // compress the files of the copy
	parallel              int

	since finished                       // of changes
	gone  map[string]map[string]struct{} // changed and deleted resources: type, id
	count Changes
}

// merged is a file of the copy and the files that it is made of.
type merged struct {
	list  List
	typ   string
	name  string // without .gz
	old   *result
	added []result

	removed int64
	stored  StoredFile
}

// run writes all files but manifest.json, which it returns.
func (m *merge) run(ctx context.Context) (done finished, results []result, err error) {
	if m.since, err = m.changes.finished(); err != nil {
		return done, nil, err
	}
	added, err := m.since.results()
	if err != nil {
		return done, nil, err
	}
	old, err := m.base.results()
	if err != nil {
		return done, nil, err
	}
	m.count, m.gone = Changes{Since: m.base.TransactionTime}, make(map[string]map[string]struct{})
	for _, list := range []List{ListOutput, ListDeleted} { // a resource that is in both lists exists
		for _, r := range added {
			if r.file.List != list {
				continue
			}
			if err := m.read(ctx, r); err != nil {
				return done, nil, fmt.Errorf("%s: %w", changesDir+"/"+r.stored.File, err)
			}
		}
	}
	files := plan(old, added)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(m.parallel)
	for _, file := range files {
		group.Go(func() error {
			if err := m.write(ctx, file); err != nil {
				return fmt.Errorf("%s: %w", file.name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return done, nil, err
	}
	done = finished{Manifest: Manifest{
		TransactionTime: m.since.TransactionTime, Request: m.since.Request, RequiresAccessToken: true,
		Output: []Item{}, Deleted: []Item{}, Error: []Item{},
	}, run: run{Export: m.since.Export, Warnings: m.since.Warnings, Changes: &m.count}}
	if len(m.since.Export.TypeFilters) > 0 {
		done.Warnings = append(done.Warnings, "resources that were changed and no longer match a type filter may still be "+
			"in the copy: servers do not report them")
	}
	lists := map[List]*[]Item{ListOutput: &done.Output, ListError: &done.Error}
	for _, file := range files {
		m.count.Removed += file.removed
		if file.stored.Resources > 0 {
			*lists[file.list] = append(*lists[file.list], Item{
				Type: file.typ, URL: file.stored.File, Count: &file.stored.Resources, Local: &file.stored,
			})
		}
	}
	results, err = done.results()
	return done, results, err
}

// read checks a file of the changes and adds its resources to those that are gone.
func (m *merge) read(ctx context.Context, r result) error {
	if r.file.Mixed {
		return fmt.Errorf("%w: it is in blocks", ErrMismatch)
	}
	r.file.Digest = nil // checked at the download
	check := linesOf(r.file, r.stored.Resources)
	if r.file.List == ListOutput {
		check.each = func(l *lines) error {
			m.count.Resources++
			if !fhir.IsID(l.scan.id) {
				return fmt.Errorf("%w: line %d has no id", ErrMismatch, l.count+1)
			}
			if !m.add(l.scan.typ, l.scan.id) {
				return fmt.Errorf("%w: line %d is of a resource that the changes have twice", ErrMismatch, l.count+1)
			}
			return nil
		}
	}
	if _, err := verify(ctx, m.changes, r, check); err != nil || r.file.List == ListOutput {
		return err
	}
	if check.count > 0 && check.typ != "Bundle" {
		return fmt.Errorf("%w: deletions are not in Bundles", ErrMismatch)
	}
	return m.changes.open(r.stored.File, func(in io.Reader) error {
		return deletions(in, m.since.Export.Base, func(typ, id string) error {
			m.count.Deletions++
			m.add(typ, id)
			return ctx.Err()
		})
	})
}

// add reports whether the resource was not there.
func (m *merge) add(typ, id string) bool {
	ids := m.gone[typ]
	if ids == nil {
		ids = make(map[string]struct{})
		m.gone[typ] = ids
	}
	before := len(ids)
	ids[id] = struct{}{}
	return len(ids) > before
}

// plan returns the files of the copy. Error files stay: what could not be exported is still missing.
func plan(old, added []result) (files []*merged) {
	type key struct {
		list List
		typ  string
	}
	names, latest := newFileNames(), make(map[key]*merged)
	for _, r := range old {
		if r.file.List != ListDeleted {
			file := &merged{list: r.file.List, typ: r.file.Type, name: strings.TrimSuffix(r.stored.File, ".gz"), old: &r}
			names.take(file.name)
			files, latest[key{file.list, file.typ}] = append(files, file), file
		}
	}
	for _, r := range added {
		if r.file.List == ListDeleted || r.stored.Resources == 0 {
			continue
		}
		file := latest[key{r.file.List, r.file.Type}]
		if file == nil {
			file = &merged{list: r.file.List, typ: r.file.Type, name: names.next(r.file.Type)}
			files, latest[key{file.list, file.typ}] = append(files, file), file
		}
		file.added = append(file.added, r)
	}
	return files
}

// span is a range of bytes of a text.
type span struct{ begin, end int64 }

// write writes a file of the copy. It has no name in the folder if it has no line.
func (m *merge) write(ctx context.Context, file *merged) (err error) {
	want := int64(0)
	var drop []span
	if file.old != nil {
		if drop, err = m.old(ctx, file); err != nil {
			return fmt.Errorf("of the last export: %w", err)
		}
		file.removed = int64(len(drop))
		want = file.old.stored.Resources - file.removed
	}
	for _, r := range file.added {
		want += r.stored.Resources
	}
	name := file.name
	if m.zip {
		name += ".gz"
	}
	if want == 0 {
		return m.folder.remove(name, name+newSuffix) // of an earlier run
	}
	out, err := m.create(name+newSuffix, newLines(file.typ, want))
	if err != nil {
		return err
	}
	if file.old != nil {
		err = m.last.copy(ctx, file.old.stored.File, drop, out)
	}
	for _, r := range file.added {
		if err == nil {
			err = m.changes.copy(ctx, r.stored.File, nil, out)
		}
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return errors.Join(err, m.folder.remove(name+newSuffix))
	}
	file.stored = StoredFile{
		File: name, SHA256: hex.EncodeToString(out.sum.Sum(nil)), Size: out.size, Bytes: out.bytes, Resources: out.check.count,
		Type: file.typ,
	}
	if err := m.folder.root.Rename(name+newSuffix, name); err != nil {
		return fmt.Errorf("rename to %s: %w", name, err)
	}
	return nil
}

// old checks a file of the last folder and returns the places of its lines that are gone.
func (m *merge) old(ctx context.Context, file *merged) (drop []span, err error) {
	r := *file.old
	r.file.Digest = nil
	check := linesOf(r.file, r.stored.Resources)
	if gone := m.gone[file.typ]; len(gone) > 0 && file.list == ListOutput {
		check.each = func(l *lines) error {
			if _, is := gone[l.scan.id]; is {
				drop = append(drop, span{l.offset, l.offset + l.size})
			}
			return nil
		}
	}
	_, err = verify(ctx, m.last, r, check)
	return drop, err
}

// copy writes the text of a file without the dropped ranges, which ascend, and ends its last line.
func (f *folder) copy(ctx context.Context, name string, drop []span, out *writer) error {
	pos := int64(0)
	return errors.Join(f.open(name, func(in io.Reader) error {
		piece := make([]byte, 256<<10)
		for {
			n, err := in.Read(piece)
			rest := piece[:n]
			if pos == 0 {
				if text, marked := bytes.CutPrefix(rest, []byte("\xef\xbb\xbf")); marked { // only the first line may have it
					rest, pos = text, 3
				}
			}
			for len(rest) > 0 {
				n, keep := len(rest), true
				if len(drop) > 0 && pos >= drop[0].end {
					drop = drop[1:]
					continue
				}
				if len(drop) > 0 {
					keep = pos < drop[0].begin
					end := drop[0].end
					if keep {
						end = drop[0].begin
					}
					n = int(min(int64(n), end-pos))
				}
				if keep {
					if _, err := out.Write(rest[:n]); err != nil {
						return err
					}
				}
				pos, rest = pos+int64(n), rest[n:]
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err = errors.Join(err, ctx.Err()); err != nil {
				return err
			}
		}
	}), out.endLine())
}

// open calls use with the text of a file, decompressed.
func (f *folder) open(name string, use func(io.Reader) error) (err error) {
	file, err := f.root.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	var in io.Reader = bufio.NewReaderSize(file, 128<<10)
	if strings.HasSuffix(name, ".gz") {
		if in, err = gzip.NewReader(in); err != nil {
			return fmt.Errorf("%w: it is not gzip: %w", ErrMismatch, err)
		}
	}
	return use(in)
}

// writer writes a file of lines, compressed or not. Close flushes it to the disk.
type writer struct {
	file  *os.File
	zip   *gzip.Writer // nil: not compressed
	sum   hash.Hash    // of the file
	size  int64        // bytes of the file
	bytes int64        // of the text
	check *lines
	last  byte // of the text
}

func (m *merge) create(name string, check *lines) (*writer, error) {
	file, err := m.folder.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return nil, fmt.Errorf("create the file: %w", err)
	}
	w := &writer{file: file, sum: sha256.New(), check: check}
	if m.zip {
		w.zip = gzip.NewWriter(raw{w})
	}
	return w, nil
}

// raw writes the bytes of the file of a writer.
type raw struct{ *writer }

func (s raw) Write(p []byte) (int, error) {
	s.sum.Write(p)
	s.size += int64(len(p))
	return s.file.Write(p)
}

func (w *writer) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	w.bytes += int64(len(p))
	w.last = p[len(p)-1]
	if _, err := w.check.Write(p); err != nil {
		return 0, err
	}
	if w.zip != nil {
		return w.zip.Write(p)
	}
	return raw{w}.Write(p)
}

// endLine ends a last line that has no newline.
func (w *writer) endLine() error {
	if w.bytes == 0 || w.last == '\n' {
		return nil
	}
	_, err := w.Write([]byte{'\n'})
	return err
}

func (w *writer) Close() error {
	err := w.check.Close()
	if w.zip != nil {
		err = errors.Join(err, w.zip.Close())
	}
	return errors.Join(err, w.file.Sync(), w.file.Close())
}
