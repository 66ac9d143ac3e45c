package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sluice-fhir/sluice/pkg/lines"
)

// File is one file to read.
type File = lines.File

// Find returns the files of the paths. A path is a file or a folder. A folder stands for the *.ndjson and *.ndjson.gz
// files in it and in its subfolders, sorted by name, without hidden ones. A path without files is an error.
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
		found, err := lines.InFolder(path)
		if err != nil {
			return nil, fmt.Errorf("find files: %w", err)
		}
		if len(found.Files) == 0 {
			return nil, fmt.Errorf("%s has no *.ndjson or *.ndjson.gz files", path)
		}
		files = append(files, found.Files...)
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
