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

// File is one file to read.
type File struct {
	Path string
	Size int64 // bytes on disk
}

// Find returns the files of the paths. A path is a file, or a folder: then all *.ndjson and *.ndjson.gz files in it and
// below, sorted by name, except hidden ones. It is an error if a path has no files.
func Find(paths []string) ([]File, error) {
	var files []File
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("find files: %w", err)
		}
		if !info.IsDir() {
			files = append(files, File{Path: path, Size: info.Size()})
			continue
		}
		found, err := inFolder(path)
		if err != nil {
			return nil, fmt.Errorf("find files: %w", err)
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("%s has no *.ndjson or *.ndjson.gz files", path)
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
			return nil, fmt.Errorf("find files: %w", err)
		}
		if seen[origin] {
			return nil, fmt.Errorf("%s is named twice", file.Path)
		}
		seen[origin] = true
	}
	if len(files) == 0 {
		return nil, errors.New("no files")
	}
	return files, nil
}

func inFolder(dir string) ([]File, error) {
	var files []File
	root := dir + string(filepath.Separator) // follows a link
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
		info, err := os.Stat(path) // follows a link
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		files = append(files, File{Path: path, Size: info.Size()})
		return nil
	})
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return files, err
}
