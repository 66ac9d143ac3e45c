package filedir

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/klauspost/compress/gzip"

	"github.com/sluice-fhir/sluice/pkg/directory/internal/groupndjson"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/lines"
	"github.com/sluice-fhir/sluice/pkg/platform/configfile"
)

// groupFileForm is the form of the names of group files, as bulk clients write them: Group.ndjson, Group.000.ndjson.gz,
// 1.Group.ndjson, Groups-of-may.jsonl.
var groupFileForm = regexp.MustCompile(`(?i)^(?:.*[^a-z0-9])?group.*\.(?:ndjson|jsonl)(?:\.gz)?$`)

// deletedForm is the form of the names of files in the folder "deleted" of an export, which may delete groups.
var deletedForm = regexp.MustCompile(`(?i)\.(?:ndjson|jsonl|json)(?:\.gz)?$`)

// groupFile is the state of a file.
type groupFile struct {
	name    string      // path in the folder, with slashes, even if it is a link
	deletes bool        // it is in a folder named "deleted"
	info    fs.FileInfo // nil if there is an error
	err     error
}

// unchanged reports whether both states have the same content.
func unchanged(a, b groupFile) bool {
	return a.name == b.name && a.info != nil && b.info != nil && configfile.SameContent(a.info, b.info)
}

// list returns the group files of the folder and its subfolders, and the number of all files. Links to files are followed,
// because mounted configuration uses them; links to folders and hidden names are not.
func list(dir string, deletes bool) (files []groupFile, all int, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, 0, err
	}
	for _, entry := range entries {
		name := entry.Name()
		switch {
		case strings.HasPrefix(name, "."):
		case entry.IsDir():
			below, n, err := list(filepath.Join(dir, name), deletes || name == "deleted")
			if err != nil {
				below = []groupFile{{err: err}}
			}
			for _, file := range below {
				file.name = path.Join(name, file.name)
				files = append(files, file)
			}
			all += n
		default:
			if all++; groupFileForm.MatchString(name) || deletes && deletedForm.MatchString(name) {
				file := examine(dir, name)
				file.deletes = deletes
				files = append(files, file)
			}
		}
	}
	return files, all, nil
}

func examine(dir, name string) groupFile {
	info, err := os.Stat(filepath.Join(dir, name))
	if err == nil && !info.Mode().IsRegular() {
		info, err = nil, errors.New("not a regular file")
	}
	return groupFile{name: name, info: info, err: err}
}

// fileIndex has the groups of a file.
type fileIndex struct {
	file    groupFile
	groups  []*version // in the order of their lines
	deleted []string   // ids of the groups that it deletes
	bad     int        // lines that cannot be read
	first   string     // the first of them, and its defect
	others  int        // lines of other types
	err     error      // why the rest of the file cannot be read
}

func (f *fileIndex) empty() bool { return len(f.groups)+len(f.deleted) == 0 }

// version is a group in a line.
type version struct {
	groupndjson.Header
	file   groupFile
	line   int   // from 1
	offset int64 // of the line, in uncompressed bytes
	err    error // why it cannot be read
	// nested are the member groups, each period once. They are held because following them in the files would read the
	// files once for each group.
	nested []nested
}

// nested is a membership of a group that is not marked inactive.
type nested struct {
	group  string
	period groupndjson.Period
}

func (v *version) place() string { return fmt.Sprintf("%s line %d", v.file.name, v.line) }

// readFile indexes the groups of a file, without their members.
func readFile(ctx context.Context, dir string, file groupFile, resolver groupndjson.Resolver) *fileIndex {
	index := &fileIndex{file: file, err: file.err}
	if index.err != nil {
		return index
	}
	if file.deletes {
		index.err = index.readDeleted(ctx, dir)
		return index
	}
	content, err := open(filepath.Join(dir, filepath.FromSlash(file.name)))
	if err != nil {
		index.err = err
		return index
	}
	defer content.Close()
	lines := &lineReader{from: bufio.NewReaderSize(content, bufferSize)}
	for number := 1; lines.next(); number++ {
		group, nested, err := readGroup(lines, resolver)
		if rest := lines.rest(); err == nil {
			err = rest
		}
		switch {
		case lines.err != nil:
			err = lines.err
		case errors.Is(err, io.EOF): // a blank line
			continue
		case errors.Is(err, groupndjson.ErrOtherType):
			index.others++
			continue
		}
		if err != nil && lines.err == nil {
			if index.bad++; index.bad == 1 {
				index.first = fmt.Sprintf("line %d: %v", number, err)
			}
		}
		if group.ID != "" {
			index.groups = append(index.groups, &version{group, file, number, lines.offset, err, nested})
		}
	}
	index.err = lines.err
	if index.err != nil && content.zipped {
		index.distrust()
	}
	return index
}

// distrust makes the groups of a damaged compressed file unavailable. What was read before the defect may be wrong: the
// checksum is at the end. So may the versions be: these groups count as the newest ones.
func (f *fileIndex) distrust() {
	f.bad, f.first, f.others = 0, "", 0
	for i, group := range f.groups {
		f.groups[i] = &version{Header: groupndjson.Header{ID: group.ID}, file: f.file, line: group.line, err: f.err}
	}
}

// readDeleted adds the groups that the entries of Bundles in the file delete.
func (f *fileIndex) readDeleted(ctx context.Context, dir string) error {
	file := f.file
	content, err := os.Open(filepath.Join(dir, filepath.FromSlash(file.name)))
	if err != nil {
		return err
	}
	defer content.Close()
	const maxLine = 32 << 20
	var broken error
	start := func() io.Reader { return io.NewSectionReader(content, 0, file.info.Size()) }
	reader := lines.Reader{
		BlockSize: bufferSize, MaxLine: maxLine, Takers: 1,
		Open:   func(int) (lines.Text, error) { return lines.Open(file.name, maxLine, true, start) },
		Broken: func(_ int, err error) { broken = err },
	}
	var scanner fhir.Scanner
	err = reader.Read(ctx, []lines.File{{Path: file.name}}, func(_ context.Context, b *lines.Block) error {
		for line := range b.Lines {
			ref, deletes := lines.Deletion(line.Body)
			if deletes && ref.Type == "Group" {
				f.deleted = append(f.deleted, ref.ID)
			}
			bad := line.TooLong
			if !bad && !deletes {
				facts, _ := scanner.Scan(line.Body) // a line that it refuses is counted with the data
				bad = facts.Type == "Group"
			}
			if bad {
				if f.bad++; f.bad == 1 {
					f.first = b.Place(line) + ": too long, or a Group among deletions"
				}
			}
		}
		return nil
	})
	return cmp.Or(err, broken)
}

// readGroup reads a line, and the periods of all members.
func readGroup(line io.Reader, resolver groupndjson.Resolver) (groupndjson.Header, []nested, error) {
	var invalid error
	var groups []nested
	seen := map[nested]bool{}
	group, err := groupndjson.Read(line, func(m groupndjson.Member) error {
		if _, _, err := m.Period.Span(); invalid == nil {
			invalid = err
		}
		if member, _ := resolver.Resolve(m); member.Type == "Group" && !m.Inactive {
			if n := (nested{member.ID, m.Period}); !seen[n] {
				groups, seen[n] = append(groups, n), true
			}
		}
		return nil
	})
	if err == nil {
		err = invalid
	}
	return group, groups, err
}

// transient reports whether the file may be readable in the next try, although it has not changed.
func (f *fileIndex) transient() bool { return isTransient(f.err) }

// isTransient reports whether an error is one of the file system, not of the content.
func isTransient(err error) bool {
	var failed *fs.PathError
	return errors.As(err, &failed)
}

// content is an open file, uncompressed.
type content struct {
	io.Reader
	file   *os.File
	zipped bool
}

func (c content) Close() error { return c.file.Close() }

// open opens a file. It is compressed if its first two bytes are those of gzip, whatever its name.
func open(name string) (content, error) {
	file, err := os.Open(name)
	if err != nil {
		return content{}, err
	}
	start := make([]byte, 2)
	n, err := io.ReadFull(file, start)
	if n < len(start) && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
		err = nil
	}
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	opened := content{Reader: file, file: file}
	if err == nil && bytes.Equal(start[:n], []byte{0x1f, 0x8b}) {
		opened.zipped = true
		opened.Reader, err = gzip.NewReader(file)
	}
	if err != nil {
		return content{}, errors.Join(err, file.Close())
	}
	return opened, nil
}
