package lines_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/lines"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestInFolder(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "folder")
	for _, name := range []string{
		"b.ndjson", "a.ndjson.gz", "a.json", ".hidden.ndjson", "..data/a.ndjson", "real/b.txt", "c.ndjson/d.ndjson",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"folder/linked.ndjson": "real/b.txt", "folder/null.ndjson": os.DevNull, "link": "folder"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{dir, dir + "/", filepath.Join(root, "link")} {
		want := []lines.File{
			{Path: filepath.Join(dir, "a.ndjson.gz"), Size: 11}, {Path: filepath.Join(dir, "b.ndjson"), Size: 8},
			{Path: filepath.Join(dir, "c.ndjson/d.ndjson"), Size: 17}, {Path: filepath.Join(dir, "linked.ndjson"), Size: 10},
		}
		if files, err := lines.InFolder(dir); err != nil || !slices.Equal(files, want) {
			t.Errorf("%s: found %v (%v), want %v", dir, files, err, want)
		}
	}
	if files, err := lines.InFolder(filepath.Join(root, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v (%v)", files, err)
	}
}

// FuzzRead: for every block size, Read returns the non-blank lines of bytes.Split with their numbers and offsets, and
// marks lines that are too long.
func FuzzRead(f *testing.F) {
	for _, seed := range []string{
		"", "\n", "a", "a\n", "a\nbc\n", "\n\n\r\na", "abcdefghij\nk\n", "a\nabcdefg\n", "\ufeffa\nb", " \ufeffa\n\t b \r\n",
		"a\nabcd", "a\nabcdefghijklmnop", "abcdefgh\nijklmnop\n", "\ufeffabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz\nb",
		"abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz\nabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz\nb",
	} {
		for _, size := range []byte{0, 1, 3, 7, 255} {
			f.Add([]byte(seed), size, byte(3))
			f.Add([]byte(seed), size, byte(255))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, size, most byte) {
		var zipped bytes.Buffer
		w := gzip.NewWriter(&zipped)
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		contents := [][]byte{data, zipped.Bytes()}
		files := []lines.File{{Path: "x.ndjson", Size: 1}, {Path: "x.ndjson.gz", Size: 2}}
		r := lines.Reader{
			BlockSize: 1 + int(size), MaxLine: 1 + int(most), Takers: 3,
			Open: func(file int) (io.ReadCloser, error) {
				text, err := lines.Text(files[file].Path, bytes.NewReader(contents[file]))
				return io.NopCloser(text), err
			},
		}
		var mu sync.Mutex
		got := make([]map[int64]lines.Line, len(files))
		err := r.Read(t.Context(), files, func(_ context.Context, b *lines.Block) error {
			mu.Lock()
			defer mu.Unlock()
			for line := range b.Lines {
				if got[b.File] == nil {
					got[b.File] = map[int64]lines.Line{}
				}
				if _, twice := got[b.File][line.Number]; twice {
					t.Errorf("line %d was yielded twice", line.Number)
				}
				if !line.TooLong && !bytes.Equal(data[line.Offset:][:len(line.Body)], line.Body) {
					t.Errorf("line %d is not at %d", line.Number, line.Offset)
				}
				line.Body = bytes.Clone(line.Body)
				got[b.File][line.Number] = line
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for file := range files {
			count := 0
			for i, text := range bytes.Split(data, []byte{'\n'}) {
				body := text
				if i == 0 {
					body = bytes.TrimPrefix(body, []byte("\ufeff"))
				}
				body = bytes.Trim(body, " \t\r")
				long := len(text) >= r.MaxLine
				line, came := got[file][int64(i+1)]
				if came != (long || len(body) > 0) || line.TooLong != long || !long && !bytes.Equal(line.Body, body) {
					t.Errorf("file %d, line %d: got %+v, want %q", file, i+1, line, text)
				}
				if came {
					count++
				}
			}
			if count != len(got[file]) {
				t.Errorf("file %d: %d lines, want %d", file, len(got[file]), count)
			}
		}
	})
}
