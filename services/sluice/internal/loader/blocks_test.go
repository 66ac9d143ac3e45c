package loader

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// FuzzBlocks: for every block size, the yielded lines are those of bytes.Split that are short enough, with their
// numbers, and the others are reported.
func FuzzBlocks(f *testing.F) {
	for _, seed := range []string{
		"", "\n", "a", "a\n", "a\nbc\n", "\n\n\r\na", "abcdefghij\nk\n", "a\nabcdefg\n",
		"a\nabcdefghijklmnop", "abcdefgh\nijklmnop\n",
	} {
		for _, size := range []byte{0, 1, 3, 7, 255} {
			f.Add([]byte(seed), size, byte(3))
			f.Add([]byte(seed), size, byte(255))
		}
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte, size, more byte) {
		r := reader{blockSize: 1 + int(size), maxLine: 1 + int(size) + int(more)}
		for _, name := range []string{"x.ndjson", "x.ndjson.gz"} {
			path := filepath.Join(dir, name)
			write(t, path, string(data))
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			lines := bytes.Split(data, []byte{'\n'})
			if len(lines[len(lines)-1]) == 0 { // of no line: the text is empty, or ends with a newline
				lines = lines[:len(lines)-1]
			}
			next := 0 // index of the line that comes next
			reported := int64(0)
			err = r.blocks(t.Context(), 7, File{Path: path}, func(b block) error {
				reported += b.read
				if b.file != 7 || len(b.data) > 0 && b.line != int64(next+1) {
					t.Errorf("a block of file %d begins with line %d, want %d", b.file, b.line, next+1)
				}
				for line := range bytes.Lines(b.data) {
					line = bytes.TrimSuffix(line, []byte{'\n'})
					if next == len(lines) || !bytes.Equal(line, lines[next]) || len(line) >= r.maxLine {
						t.Fatalf("line %d is yielded as %q", next+1, line)
					}
					next++
				}
				return nil
			}, func(line int64) {
				if next == len(lines) || line != int64(next+1) || len(lines[next]) < r.maxLine {
					t.Fatalf("line %d is too long, where line %d comes next", line, next+1)
				}
				next++
			})
			if err != nil || next != len(lines) || reported != info.Size() {
				t.Errorf("%s: %v; %d of %d lines, %d of %d bytes", name, err, next, len(lines), reported, info.Size())
			}
		}
	})
}
