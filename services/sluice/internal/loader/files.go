package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sluice-fhir/sluice/pkg/lines"
)

// Found are the files of some paths.
type Found struct {
	Files  []lines.File
	Other  []string           // files in folders that have other endings
	Broken []lines.BrokenFile // files in folders that cannot be read
}

// Find returns the files of the paths. A path is a file or a folder. A folder stands for its files (lines.InFolder). A
// path without files is an error.
func Find(paths []string) (Found, error) {
	var all Found
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return all, fmt.Errorf("find files: %w", err)
		}
		if !info.IsDir() {
			if !info.Mode().IsRegular() {
				return all, fmt.Errorf("%s is not a regular file; it may have to be read more than once", path)
			}
			all.Files = append(all.Files, lines.File{Path: path, Size: info.Size()})
			continue
		}
		found, err := lines.InFolder(path)
		if err != nil {
			return all, fmt.Errorf("find files: %w", err)
		}
		if len(found.Files)+len(found.Broken) == 0 {
			return all, fmt.Errorf("%s has no *.ndjson, *.jsonl or *.json files, plain or with .gz", path)
		}
		all.Files = append(all.Files, found.Files...)
		for _, name := range found.Other {
			all.Other = append(all.Other, filepath.Join(path, name))
		}
		for _, broken := range found.Broken {
			all.Broken = append(all.Broken, lines.BrokenFile{Name: filepath.Join(path, broken.Name), Err: broken.Err})
		}
	}
	seen := map[string]bool{}
	for _, file := range all.Files {
		origin, err := filepath.EvalSymlinks(file.Path)
		if err == nil {
			origin, err = filepath.Abs(origin)
		}
		if err != nil {
			return all, fmt.Errorf("find files: %w", err)
		}
		if seen[origin] {
			return all, fmt.Errorf("%s is named twice", file.Path)
		}
		seen[origin] = true
	}
	if len(all.Files)+len(all.Broken) == 0 {
		return all, errors.New("no files")
	}
	return all, nil
}
