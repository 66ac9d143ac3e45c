package loader

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// write writes a file and its folders. The text is compressed if the name ends in .gz.
func write(t *testing.T, path, text string) {
	t.Helper()
	if strings.HasSuffix(path, ".gz") {
		text = zipped(t, text)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func zipped(t *testing.T, text string) string {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestFind(t *testing.T) {
	root := t.TempDir()
	for _, path := range []string{
		"elsewhere/far.ndjson", "elsewhere/notes.txt", "folder/b.ndjson", "folder/a.ndjson.gz", "folder/notes.txt",
		"folder/a.ndjson.bak", "folder/.hidden.ndjson", "folder/.git/x.ndjson", "folder/sub/c.ndjson",
		"folder/sub/deeper/d.ndjson.gz", "folder/sub.ndjson/e.ndjson", "folder/empty/.keep", ".dotted/f.ndjson",
	} {
		write(t, filepath.Join(root, path), strings.Repeat("x", len(path)))
	}
	for link, target := range map[string]string{
		"folder/link.ndjson": "../elsewhere/far.ndjson", "folder/zero.ndjson": os.DevNull, "linked": "folder",
		"dangling/x.ndjson": "nowhere",
	} {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(link)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	found := []string{
		"a.ndjson.gz", "b.ndjson", "sub.ndjson/e.ndjson", "sub/c.ndjson", "sub/deeper/d.ndjson.gz",
	}
	slices.Sort(found)
	in := func(folder string) (paths []string) {
		for _, name := range found {
			paths = append(paths, folder+"/"+name)
		}
		return paths
	}
	for name, test := range map[string]struct {
		paths, want []string
		broken      []string
		contains    string // of the error
	}{
		"a file":             {paths: []string{"folder/b.ndjson"}, want: []string{"folder/b.ndjson"}},
		"a file of any name": {paths: []string{"folder/notes.txt"}, want: []string{"folder/notes.txt"}},
		"a hidden file":      {paths: []string{"folder/.hidden.ndjson"}, want: []string{"folder/.hidden.ndjson"}},
		// A link in a folder does not leave it.
		"a folder":           {paths: []string{"folder"}, want: in("folder"), broken: []string{"folder/link.ndjson", "folder/zero.ndjson"}},
		"a folder by a link": {paths: []string{"linked"}, want: in("linked"), broken: []string{"linked/link.ndjson", "linked/zero.ndjson"}},
		"a hidden folder":    {paths: []string{".dotted"}, want: []string{".dotted/f.ndjson"}},
		"in the order that is given": {
			paths: []string{"folder/b.ndjson", ".dotted"}, want: []string{"folder/b.ndjson", ".dotted/f.ndjson"},
		},
		"no paths":               {contains: "no files"},
		"missing":                {paths: []string{"folder/b.ndjson", "none"}, contains: "none: no such file"},
		"a folder without files": {paths: []string{"folder/empty"}, contains: "folder/empty has no *.ndjson"},
		"a link to nothing":      {paths: []string{"dangling"}, broken: []string{"dangling/x.ndjson"}},
		"a file twice":           {paths: []string{"folder/b.ndjson", "folder/b.ndjson"}, contains: "b.ndjson is named twice"},
		"a file by two ways":     {paths: []string{"folder/b.ndjson", "linked/b.ndjson"}, contains: "b.ndjson is named twice"},
		"a file and its folder":  {paths: []string{"folder/b.ndjson", "folder"}, contains: "folder/b.ndjson is named twice"},
		"a file and its link": {
			paths: []string{"elsewhere/far.ndjson", "folder/link.ndjson"}, contains: "folder/link.ndjson is named twice",
		},
		"a folder and its link": {paths: []string{"folder", "linked"}, contains: "is named twice"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(root)
			files, err := Find(test.paths)
			if test.contains != "" {
				if err == nil || !strings.Contains(err.Error(), test.contains) {
					t.Fatalf("%v, %v; want the error %q", files, err, test.contains)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, file := range files.Files {
				got = append(got, file.Path)
				info, err := os.Stat(file.Path)
				if err != nil || info.Size() != file.Size {
					t.Errorf("%s has the size %d (%v)", file.Path, file.Size, err)
				}
			}
			var broken []string
			for _, file := range files.Broken {
				broken = append(broken, file.Name)
			}
			if !slices.Equal(got, test.want) || !slices.Equal(broken, test.broken) {
				t.Errorf("found %q and broken %q, want %q and %q", got, broken, test.want, test.broken)
			}
		})
	}
}
