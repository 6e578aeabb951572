//! Fronts: what is left when everything is taken away that something else is at least as good as in every respect.

/// What can be no better than another of its kind in every respect.
pub trait Dominates {
    /// Whether this is at least as good in every component.
    fn dominates(&self, other: &Self) -> bool;

    /// An order in which what dominates comes before what it dominates, unless both are as good.
    fn order(&self, other: &Self) -> std::cmp::Ordering;
}

/// Points of which none dominates another. Of several that are equally good the least by its order is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front<T> {
    points: Vec<T>,
}

impl<T: Dominates> Front<T> {
    /// The front of some points.
    pub fn of(points: impl IntoIterator<Item = T>) -> Self {
        let mut all: Vec<T> = points.into_iter().collect();
        all.sort_by(T::order);
        let mut front: Vec<T> = Vec::new();
        for point in all {
            // Whatever dominates it comes before it in the order, so what was kept stays.
            if !front.iter().any(|kept| kept.dominates(&point)) {
                front.push(point);
            }
        }
        Self { points: front }
    }

    /// The points, in their order.
    pub fn points(&self) -> &[T] {
        &self.points
    }
}
