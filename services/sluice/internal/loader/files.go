package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// File is one file to be read.
type File struct {
	Path string
	Size int64 // bytes, as it lies there
}

// Find returns the files that the paths name: a file as it is, and of a folder every *.ndjson and *.ndjson.gz in it and
// below, in the order of names, without those that begin with a dot. Naming nothing that can be read is an error.
func Find(paths []string) ([]File, error) {
	var files []File
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("look for files: %w", err)
		}
		if !info.IsDir() {
			files = append(files, File{Path: path, Size: info.Size()})
			continue
		}
		found, err := inFolder(path)
		if err != nil {
			return nil, fmt.Errorf("look for files: %w", err)
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("%s holds no *.ndjson and no *.ndjson.gz", path)
		}
		files = append(files, found...)
	}
	seen := map[string]bool{}
	for _, file := range files {
		origin, err := filepath.EvalSymlinks(file.Path)
		if err == nil {
			origin, err = filepath.Abs(origin)
		}
		if err != nil {
			return nil, fmt.Errorf("look for files: %w", err)
		}
		if seen[origin] {
			return nil, fmt.Errorf("%s is named twice", file.Path)
		}
		seen[origin] = true
	}
	if len(files) == 0 {
		return nil, errors.New("no files are named")
	}
	return files, nil
}

func inFolder(dir string) ([]File, error) {
	var files []File
	root := dir + string(filepath.Separator) // what a link names, not the link
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		hidden := strings.HasPrefix(entry.Name(), ".") && path != root
		if entry.IsDir() {
			if hidden {
				return fs.SkipDir
			}
			return nil
		}
		if hidden || !strings.HasSuffix(path, ".ndjson") && !strings.HasSuffix(path, ".ndjson.gz") {
			return nil
		}
		info, err := os.Stat(path) // a link is followed
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		files = append(files, File{Path: path, Size: info.Size()})
		return nil
	})
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return files, err
}
